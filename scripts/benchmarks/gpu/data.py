"""Random LoRA layers for kernel timings, in the layout of every contender, and what is right.

    y[t] += B[i] · (A[i] · x[t])        for the rows t of adapter i

Every layer has its own A, B, x and y: together they should be larger than the last cache.
"""

from dataclasses import dataclass

import torch

from benchmarks.gpu.shapes import GROUPS, MOST_DECODE_ROWS, Mix, layer_sites
from multilora.base_model.config import NativeConfig
from multilora.base_model.sites import LoRASite
from multilora_kernels.segments import PAGE_RANK, LaunchBounds, LoRASegments

_MOST_LAYERS = 80
_POOL_PAGES = 512  # so many a captured decode pass must expect; prefill is not captured


@dataclass(frozen=True, eq=False)
class LoRAGroup:
    """One site of one layer; R is the largest rank of the mix."""

    x: torch.Tensor  # [T, in]
    y: torch.Tensor  # [T, out_total]
    A: list[torch.Tensor]  # of each slice: [adapters, R, in], zero beyond an adapter's rank
    B: list[torch.Tensor]  # [adapters, out, R], likewise
    a: torch.Tensor  # the same as rank pages: [pages, slices, PAGE_RANK, in]
    b: torch.Tensor  # [pages, PAGE_RANK, out_total]
    slice_sizes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LoRAData:
    mix: Mix
    layers: list[dict[str, LoRAGroup]]
    segments: LoRASegments
    row_adapter: torch.Tensor  # int64 [T], on the host

    @property
    def groups(self) -> list[tuple[int, str]]:
        return [(layer, group) for layer in range(len(self.layers)) for group in GROUPS]


def layers_needed(bytes_per_layer: int, cache_bytes: int) -> int:
    """So many layers that one pass over all leaves nothing of the first in the cache."""
    return min(max(2, -(-2 * cache_bytes // bytes_per_layer)), _MOST_LAYERS)


def make_lora_data(
    base: NativeConfig, mix: Mix, num_layers: int, dtype: torch.dtype, device: torch.device
) -> LoRAData:
    torch.manual_seed(0)
    pages = _page_numbers(mix)
    layers = [
        {
            group: _group(site, mix, pages, dtype, device)
            for group, site in layer_sites(base).items()
        }
        for _ in range(num_layers)
    ]
    starts = [sum(mix.counts[:i]) for i in range(mix.num_adapters)]
    bounds = None
    if (rows := mix.num_rows) <= MOST_DECODE_ROWS:
        most, total = max(map(len, pages)), sum(map(len, pages))
        bounds = LaunchBounds.for_pass(rows, rows, most, max(total, _POOL_PAGES))
    segments = LoRASegments.from_lists(
        starts, mix.counts, pages, mix.num_rows, device, dtype, bounds
    )
    return LoRAData(mix, layers, segments, torch.tensor(mix.row_adapter))


def _page_numbers(mix: Mix) -> list[list[int]]:
    pages: list[list[int]] = []
    first = 0
    for rank in mix.ranks:
        count = -(-rank // PAGE_RANK)
        pages.append(list(range(first, first + count)))
        first += count
    return pages


def _group(
    site: LoRASite,
    mix: Mix,
    pages: list[list[int]],
    dtype: torch.dtype,
    device: torch.device,
) -> LoRAGroup:
    n_in, sizes = site.in_features, site.slice_sizes
    ranks = torch.tensor(mix.ranks, device=device)
    beyond = torch.arange(max(mix.ranks), device=device) >= ranks[:, None]
    shape = (mix.num_adapters, max(mix.ranks))

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    A = [noise(*shape, n_in).div_(n_in**0.5).masked_fill_(beyond[:, :, None], 0) for _ in sizes]
    B = [
        noise(shape[0], size, shape[1]).div_(shape[1] ** 0.5).masked_fill_(beyond[:, None], 0)
        for size in sizes
    ]
    a, b = _pack(A, B, pages)
    y = noise(mix.num_rows, site.out_features).div_(4)
    return LoRAGroup(noise(mix.num_rows, n_in), y, A, B, a, b, sizes)


def _pack(
    A: list[torch.Tensor], B: list[torch.Tensor], pages: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank pages: page j of adapter i holds its ranks from j * PAGE_RANK on."""
    total = sum(map(len, pages))
    a = A[0].new_zeros(total, len(A), PAGE_RANK, A[0].shape[2])
    b = B[0].new_zeros(total, PAGE_RANK, sum(part.shape[1] for part in B))
    for j in range(max(map(len, pages))):
        adapters = [i for i, own in enumerate(pages) if j < len(own)]
        numbers = torch.tensor([pages[i][j] for i in adapters], device=a.device)
        own = torch.tensor(adapters, device=a.device)
        ranks = slice(j * PAGE_RANK, (j + 1) * PAGE_RANK)
        columns = torch.cat(B, dim=1)[own, :, ranks].transpose(1, 2)
        a[numbers, :, : columns.shape[1]] = torch.stack(A, dim=1)[own, :, ranks]
        b[numbers, : columns.shape[1]] = columns
    return a, b


def expected(data: LoRAData, layer: int, group: str) -> torch.Tensor:
    """float64 [T, out_total], on the device."""
    own = data.layers[layer][group]
    out = own.y.double()
    start = 0
    for adapter, count in enumerate(data.mix.counts):
        x = own.x[start : start + count].double()
        delta = [
            x @ a[adapter].double().T @ b[adapter].double().T
            for a, b in zip(own.A, own.B, strict=True)
        ]
        out[start : start + count] += torch.cat(delta, dim=1)
        start += count
    return out


def error_of(result: torch.Tensor, right: torch.Tensor) -> float:
    """The largest error, relative to the largest number that is right; inf for NaN."""
    error = ((result.double() - right).abs().max() / right.abs().max()).item()
    return error if error == error else float("inf")
