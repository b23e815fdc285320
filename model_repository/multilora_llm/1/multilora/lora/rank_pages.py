"""Rank pages: how the weights of adapters lie in memory, and the device pool made of them.

A page holds the same PAGE_RANK ranks of every site (see LoRASite). For a site s:

    a[s]  [pages, slices, PAGE_RANK, in_features]   rank rows of A
    b[s]  [pages, PAGE_RANK, out_features]          rank rows of scaling · Bᵀ, slices in a row

so that y += Σ over ranks (x · a) b. What an adapter lacks is zeros. Adapters in host memory and the
device pool share this layout; a layer of an adapter is one contiguous run, so that it travels in
one copy.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

import numpy as np
import torch

from multilora.base_model.sites import LoRASite
from multilora_kernels.segments import PAGE_RANK

Views = dict[str, torch.Tensor]  # by the name of the site


def bytes_per_page(sites: Iterable[LoRASite], dtype: torch.dtype) -> int:
    return _numbers(sites) * dtype.itemsize


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """As torch.zeros; on a CPU memory is taken from the system only when it is first written."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    untouched = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(untouched).view(dtype).view(shape)


@dataclass(frozen=True, eq=False)
class PageTensors:
    """Some pages of all sites. `layers` and the views `a` and `b` lie in `data`."""

    data: torch.Tensor  # flat
    layers: tuple[torch.Tensor, ...]  # the run of each layer, flat
    a: Mapping[str, torch.Tensor]
    b: Mapping[str, torch.Tensor]

    @classmethod
    def zeros(
        cls,
        sites: Sequence[LoRASite],
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> Self:
        data = zeros((num_pages * _numbers(sites),), dtype, device)
        by_layer = sites_by_layer(sites)
        layers = data.split([num_pages * _numbers(layer) for layer in by_layer])
        a: Views = {}
        b: Views = {}
        for run, layer in zip(layers, by_layer, strict=True):
            views = split_layer(run, layer, num_pages)
            a |= views[0]
            b |= views[1]
        return cls(data, layers, a, b)


def sites_by_layer(sites: Iterable[LoRASite]) -> list[list[LoRASite]]:
    return [list(group) for _, group in groupby(sites, key=lambda site: site.layer)]


def split_layer(
    run: torch.Tensor, sites: Sequence[LoRASite], num_pages: int
) -> tuple[Views, Views]:
    """The a and b of each site in one layer's run of numbers, as views."""
    a: Views = {}
    b: Views = {}
    parts = _parts(run, sites, num_pages)
    for site in sites:
        a[site.name] = next(parts).view(num_pages, len(site.slices), PAGE_RANK, site.in_features)
        b[site.name] = next(parts).view(num_pages, PAGE_RANK, site.out_features)
    return a, b


def _parts(run: torch.Tensor, sites: Sequence[LoRASite], pages: int) -> Iterator[torch.Tensor]:
    sizes: list[int] = []
    for site in sites:
        sizes.append(pages * PAGE_RANK * len(site.slices) * site.in_features)
        sizes.append(pages * PAGE_RANK * site.out_features)
    return iter(run.split(sizes))


def _numbers(sites: Iterable[LoRASite]) -> int:
    """How many numbers one page of these sites holds."""
    return PAGE_RANK * sum(site.numbers_per_rank for site in sites)


class RankPagePool:
    """The device pool: `num_pages` pages of `dtype` on `device`, zeros at first.

    Which adapter owns which page is RankPageAllocator's business; pages without an owner hold stale
    numbers and are never referenced. `a` and `b` are what the kernels take.
    """

    def __init__(
        self,
        sites: Sequence[LoRASite],
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        pool = PageTensors.zeros(sites, num_pages, dtype, device)
        self.a = pool.a
        self.b = pool.b
        self.num_pages = num_pages
        self.num_layers = len(pool.layers)
        self.nbytes = num_pages * bytes_per_page(sites, dtype)
        self._layers = sites_by_layer(sites)
        self._device = pool.data.device

    def write(self, pages: Sequence[int], source: PageTensors) -> None:
        """Copy page i of `source` into pool page `pages[i]`."""
        for layer in range(self.num_layers):
            self.write_layer(layer, pages, source)

    def write_layer(self, layer: int, pages: Sequence[int], source: PageTensors) -> int:
        """One layer of `write` → its bytes; the device needs room for them once more meanwhile.

        ValueError when the number of pages differs.
        """
        run, sites = source.layers[layer], self._layers[layer]
        num_pages, rest = divmod(run.numel(), _numbers(sites))
        if num_pages != len(pages) or rest:
            raise ValueError(f"the weights have {num_pages} pages, got {len(pages)}")
        a, b = split_layer(run.to(self._device), sites, len(pages))
        for name in a:
            _copy_pages(self.a[name], pages, a[name])
            _copy_pages(self.b[name], pages, b[name])
        return run.nbytes


def _copy_pages(pool: torch.Tensor, pages: Sequence[int], source: torch.Tensor) -> None:
    first = pages[0]
    if tuple(pages) == tuple(range(first, first + len(pages))):  # one copy, without an index
        pool[first : first + len(pages)].copy_(source)
    else:
        pool.index_copy_(0, torch.tensor(pages, device=pool.device), source)
