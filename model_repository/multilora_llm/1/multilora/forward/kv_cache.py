"""KVCache: keys and values of every layer, in blocks of `block_size` tokens."""

import torch

from multilora.base_model.config import BaseConfig
from multilora.lora.rank_pages import zeros


class KVCache:
    """`k` and `v` [layers, num_blocks, block_size, kv_heads, head_dim] in the engine's dtype.

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
        shape = (base.num_layers, num_blocks, block_size, base.num_kv_heads, base.head_dim)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.k = zeros(shape, dtype, device)
        self.v = zeros(shape, dtype, device)

    @staticmethod
    def bytes_per_block(base: BaseConfig, block_size: int, dtype: torch.dtype) -> int:
        """Bytes of one block: k and v of `block_size` tokens in every layer."""
        elements = base.num_layers * block_size * base.num_kv_heads * base.head_dim
        return 2 * elements * dtype.itemsize
