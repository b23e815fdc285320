"""The device pool of rank pages: every adapter on the device lives in some of its pages.

RankPageAllocator knows which adapter owns which page; unowned pages hold stale numbers and are
never referenced. See page_layout for the shapes.
"""

from collections.abc import Sequence

import torch

from multilora.adapters.checkpoint.adapter import Adapter
from multilora.base_model.config import PROJECTION_GROUPS, BaseConfig
from multilora.lora.rank_pages import PageTensors, bytes_per_page, split_layer


class AdapterPages:
    """`num_pages` pages of `dtype` on `device`, zeros at first.

    `a[layer][group]` and `b[layer][group]` are what the kernels take; `slice_sizes[group]` goes
    with them.
    """

    def __init__(
        self,
        base: BaseConfig,
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        pool = PageTensors.zeros(base, num_pages, dtype, device)
        self.a = pool.a
        self.b = pool.b
        self.slice_sizes = {group: base.slice_sizes(group) for group in PROJECTION_GROUPS}
        self.num_pages = num_pages
        self.num_layers = base.num_layers
        self.nbytes = num_pages * self.bytes_per_page(base, dtype)
        self._base = base
        self._device = pool.data.device

    @staticmethod
    def bytes_per_page(base: BaseConfig, dtype: torch.dtype) -> int:
        return bytes_per_page(base, dtype)

    def write(self, pages: Sequence[int], adapter: Adapter) -> None:
        """Copy page i of `adapter` into pool page `pages[i]`."""
        for layer in range(self.num_layers):
            self.write_layer(layer, pages, adapter)

    def write_layer(self, layer: int, pages: Sequence[int], adapter: Adapter) -> int:
        """One layer of `write` → its bytes; the device needs room for them once more meanwhile.

        ValueError when the number of pages differs.
        """
        if len(pages) != adapter.num_pages:
            raise ValueError(f"{adapter.key} has {adapter.num_pages} pages, got {len(pages)}")
        row = adapter.weights.data[layer]
        a, b = split_layer(row.to(self._device), self._base, adapter.num_pages)
        for group in a:
            _copy_pages(self.a[layer][group], pages, a[group])
            _copy_pages(self.b[layer][group], pages, b[group])
        return row.nbytes


def _copy_pages(pool: torch.Tensor, pages: Sequence[int], source: torch.Tensor) -> None:
    first = pages[0]
    if tuple(pages) == tuple(range(first, first + len(pages))):  # one copy, without an index
        pool[first : first + len(pages)].copy_(source)
    else:
        pool.index_copy_(0, torch.tensor(pages, device=pool.device), source)
