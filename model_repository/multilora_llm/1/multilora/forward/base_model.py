"""What a pass asks of a base model, whichever class computes it, and the memory that it keeps: the
keys and values of every layer, in blocks of `block_size` tokens."""

from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from multilora.base_model.config import NativeConfig
from multilora.base_model.sites import BaseConfig
from multilora.base_model.weights import QuantisedSites
from multilora.forward.step_input import StepInput
from multilora.lora.rank_pages import RankPagePool, zeros
from multilora_kernels.segments import LoRASegments


class KVCache:
    """`k` [layers, num_blocks, block_size, kv_heads, head_dim] and `v`, whose heads have value_dim
    numbers, in the engine's dtype.

    A token's kv slot is block * block_size + offset. Zeroed at the start: what a masked position
    holds may be multiplied by 0, and must not be NaN.
    """

    def __init__(
        self,
        base: BaseConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (base.num_layers, num_blocks, block_size, base.num_kv_heads)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.k = zeros((*shape, base.head_dim), dtype, device)
        self.v = zeros((*shape, base.value_dim), dtype, device)

    @staticmethod
    def bytes_per_block(base: BaseConfig, block_size: int, dtype: torch.dtype) -> int:
        """Bytes of one block: k and v of `block_size` tokens in every layer."""
        heads = base.num_layers * block_size * base.num_kv_heads
        return heads * (base.head_dim + base.value_dim) * dtype.itemsize


class Hidden(NamedTuple):
    """[rows, hidden], of which the base model makes logits. `rest`: what the adapters of the last
    site still have to add to `x`."""

    x: torch.Tensor
    rest: torch.Tensor | None = None

    def rows(self, index: torch.Tensor) -> "Hidden":
        rest = None if self.rest is None else self.rest.index_select(0, index)
        return Hidden(self.x.index_select(0, index), rest)


class BaseModel(Protocol):
    """Weights on the device; holds no state of any batch between two passes."""

    @property
    def base(self) -> BaseConfig: ...

    @property
    def quantised(self) -> QuantisedSites | None:
        """None where the linear layers are computed in the engine's dtype."""
        ...

    def forward(
        self,
        inputs: StepInput,
        kv: KVCache,
        adapters: RankPagePool | None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits, float32 [N, vocab], of the rows `last_token_indices`; into `out` if given."""
        ...

    def hidden(self, inputs: StepInput, kv: KVCache, adapters: RankPagePool | None) -> Hidden:
        """All T rows.

        Writes K and V of all rows into `kv` at `kv_slots`. `adapters` holds the pages that the
        segments name.
        """
        ...

    def logits(
        self,
        hidden: Hidden,
        adapters: RankPagePool | None,
        segments: LoRASegments | None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """float32 [rows, vocab], in `out` if given. `segments` are those of the rows, None where
        adapters do not act on the head, or all rows are base rows."""
        ...


def load_base_model(
    folder: Path,
    base: BaseConfig,
    dtype: torch.dtype,
    device: torch.device,
    total_tokens: int,
    quantize: str = "auto",
) -> BaseModel:
    """For sequences of up to `total_tokens`; `quantize` is the setting. Raises StartupError."""
    if isinstance(base, NativeConfig):
        from multilora.forward.decoder import load_decoder  # which imports this module

        return load_decoder(folder, base, dtype, device, quantize)
    from multilora.forward.transformers_loading import load_transformers_decoder

    return load_transformers_decoder(folder, base, dtype, device, total_tokens, quantize)
