"""BaseModel: what a pass asks of a base model, whichever class computes it, and the memory that it
keeps: the keys and values of every layer, in blocks of `block_size` tokens."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from multilora.base_model.config import NativeConfig
from multilora.base_model.sites import BaseConfig
from multilora.base_model.weights import QuantisedSites
from multilora.errors import StartupError
from multilora.forward.step_input import StepInput
from multilora.lora.linear import BatchLoRA
from multilora.lora.rank_pages import RankPagePool, zeros
from multilora_kernels.paged_attention import paged_attention
from multilora_kernels.paged_context import PagedContext
from multilora_kernels.paged_prefill import QueryTiles
from multilora_kernels.segments import LoRASegments
from multilora_kernels.unpaged_prefill import takes_rows


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


@dataclass(frozen=True, eq=False)
class Step:
    """One pass, as all layers see it."""

    inputs: StepInput
    kv: KVCache
    lora: BatchLoRA | None
    paged: PagedContext

    def takes_rows(self, kv: torch.Tensor, window: int | None) -> bool:
        """Whether `attend` is to be given K and V of the pass's own rows; `kv` is a tensor that
        holds them."""
        return self.inputs.has_fresh_prompts and takes_rows(kv, self.kv.k.shape[4], window)

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        scale: float,
        window: int | None,
        rows: tuple[torch.Tensor, torch.Tensor] | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """q [T, heads, D] → [T, heads, V], over what the KV cache has of `layer`, the pass's own
        rows included. `rows` are K and V of these, if it takes them; see paged_attention."""
        inputs = self.inputs
        return paged_attention(
            q,
            self.kv.k[layer],
            self.kv.v[layer],
            inputs.cu_seqlens_q,
            inputs.context_lens,
            inputs.block_tables,
            scale=scale,
            sliding_window=window,
            softcap=softcap,
            sinks=sinks,
            context=self.paged,
            has_decode=inputs.has_decode,
            tiles=QueryTiles(inputs.query_tiles, inputs.queries),
            rows=rows,
        )


class BaseModel(ABC):
    """Weights on the device; holds no state of any batch between two passes.

    `quantised` is None where the linear layers are computed in the engine's dtype. `adapters` holds
    the pages that segments name; ValueError: there are segments and no pages.
    """

    def __init__(self, base: BaseConfig, quantised: QuantisedSites | None) -> None:
        self.base = base
        self.quantised = quantised

    @torch.inference_mode()
    def forward(
        self,
        inputs: StepInput,
        kv: KVCache,
        adapters: RankPagePool | None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits, float32 [N, vocab], of the rows `last_token_indices`; into `out` if given."""
        hidden = self.hidden(inputs, kv, adapters).rows(inputs.last_token_indices)
        return self.logits(hidden, adapters, inputs.sampled, out)

    @torch.inference_mode()
    def hidden(self, inputs: StepInput, kv: KVCache, adapters: RankPagePool | None) -> Hidden:
        """All T rows. Writes K and V of all rows into `kv` at `kv_slots`. ValueError, too, where
        adapters act on the head and `inputs` has segments but none of the rows that sample."""
        if inputs.segments is not None and self.base.adapts_sampled and inputs.sampled is None:
            raise ValueError("adapters act on the head but the batch does not say on which rows")
        paged = PagedContext(inputs.cu_seqlens_q, inputs.context_lens, inputs.block_tables)
        return self._hidden(Step(inputs, kv, _batch_lora(adapters, inputs.segments), paged))

    @torch.inference_mode()
    def logits(
        self,
        hidden: Hidden,
        adapters: RankPagePool | None,
        segments: LoRASegments | None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """float32 [rows, vocab], in `out` if given. `segments` are those of the rows, None where
        adapters do not act on the head, or all rows are base rows."""
        logits = self._logits(hidden, _batch_lora(adapters, segments))
        return logits.float() if out is None else out.copy_(logits)

    @abstractmethod
    def _hidden(self, step: Step) -> Hidden: ...

    @abstractmethod
    def _logits(self, hidden: Hidden, lora: BatchLoRA | None) -> torch.Tensor:
        """[rows, vocab], of any float dtype."""


def _batch_lora(adapters: RankPagePool | None, segments: LoRASegments | None) -> BatchLoRA | None:
    if segments is None:
        return None
    if adapters is None:
        raise ValueError("the batch has adapter rows but no adapter pages were given")
    return BatchLoRA(adapters, segments)


def read_base(folder: Path, model_impl: str) -> BaseConfig:
    """Of the class that is to compute it, as `model_impl` says (see EngineConfig); raises
    StartupError."""
    if model_impl == "native" or (model_impl == "auto" and NativeConfig.fits(folder)):
        return NativeConfig.from_folder(folder)
    from multilora.base_model import transformers_config  # seconds that ours does without

    return transformers_config.TransformersConfig.from_folder(folder)


def load_base_model(
    folder: Path,
    base: BaseConfig,
    dtype: torch.dtype,
    device: torch.device,
    total_tokens: int,
    quantize: str = "auto",
) -> BaseModel:
    """For sequences of up to `total_tokens`; `quantize` is the setting (see EngineConfig).
    StartupError names what is missing, wrong or too large."""
    try:
        if isinstance(base, NativeConfig):
            from multilora.forward.decoder import load_decoder  # which imports this module

            return load_decoder(folder, base, dtype, device, quantize)
        from multilora.forward.transformers_loading import load_transformers_decoder

        return load_transformers_decoder(folder, base, dtype, device, total_tokens, quantize)
    except torch.OutOfMemoryError:
        raise too_large(folder, dtype, device) from None


def too_large(folder: Path, dtype: torch.dtype, device: torch.device) -> StartupError:
    """For a base model that leaves no memory for itself or for a pass."""
    return StartupError(
        f"{folder} as {dtype} does not fit on {device}; choose a smaller base model or dtype, or "
        "--quantize int4"
    )
