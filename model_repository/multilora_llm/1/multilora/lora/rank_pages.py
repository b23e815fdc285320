"""How the weights of adapters lie in memory: rank pages, one flat run of numbers per layer.

A page holds the same PAGE_RANK ranks of every projection of every layer. For layer l and
projection group g (slices = the projections fused in it, in order):

    a[l][g]  [pages, slices, PAGE_RANK, in_features]   rank rows of A
    b[l][g]  [pages, PAGE_RANK, out_total]             rank rows of scaling · Bᵀ, slices in a row

so that y += Σ over ranks (x · a) b. What an adapter lacks is zeros. Host adapters and the device
pool share this layout; a layer of an adapter is one contiguous run, so it travels in one copy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch

from multilora.base_model.config import PROJECTION_GROUPS, BaseConfig
from multilora.lora.zeros import zeros
from multilora_kernels.segments import PAGE_RANK


def elements_per_layer(base: BaseConfig) -> int:
    """Numbers of one page in one layer."""
    rows = sum(
        len(projections) * base.group_in(group) + sum(base.slice_sizes(group))
        for group, projections in PROJECTION_GROUPS.items()
    )
    return PAGE_RANK * rows


def bytes_per_page(base: BaseConfig, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers."""
    return base.num_layers * elements_per_layer(base) * dtype.itemsize


@dataclass(frozen=True, eq=False)
class PageTensors:
    """`data` [layers, pages * elements_per_layer]; `a` and `b` are views of it."""

    data: torch.Tensor
    a: tuple[dict[str, torch.Tensor], ...]
    b: tuple[dict[str, torch.Tensor], ...]

    @classmethod
    def zeros(
        cls, base: BaseConfig, num_pages: int, dtype: torch.dtype, device: torch.device | str
    ) -> Self:
        shape = (base.num_layers, num_pages * elements_per_layer(base))
        data = zeros(shape, dtype, device)
        views = [split_layer(row, base, num_pages) for row in data]
        return cls(data, tuple(a for a, _ in views), tuple(b for _, b in views))


def split_layer(
    row: torch.Tensor, base: BaseConfig, num_pages: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The a and b of every group in one layer's run of numbers, as views."""
    a: dict[str, torch.Tensor] = {}
    b: dict[str, torch.Tensor] = {}
    runs = _runs(row, base, num_pages)
    for group, projections in PROJECTION_GROUPS.items():
        a[group] = next(runs).view(num_pages, len(projections), PAGE_RANK, base.group_in(group))
        b[group] = next(runs).view(num_pages, PAGE_RANK, sum(base.slice_sizes(group)))
    return a, b


def _runs(row: torch.Tensor, base: BaseConfig, num_pages: int) -> Iterator[torch.Tensor]:
    sizes: list[int] = []
    for group, projections in PROJECTION_GROUPS.items():
        sizes.append(num_pages * PAGE_RANK * len(projections) * base.group_in(group))
        sizes.append(num_pages * PAGE_RANK * sum(base.slice_sizes(group)))
    return iter(row.split(sizes))
