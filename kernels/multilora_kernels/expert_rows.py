"""Expert rows: the rows of a batch once for each expert that they go to, and their LoRASegments.

A pair (row, one of its k experts) is a row of what experts compute. Pairs are sorted by expert, and
those of an expert by adapter: so each expert has one run of rows, for a grouped product, and each
adapter one run of these. A pool has entry page · E + e for the part of a page that is expert e's,
hence a run is a segment like any other, whose pages are those entries, and base rows between the
runs are in none.

How many runs there are depends on what a router has just computed. So where kernels run the tables
are made on the device, without looking at a number on the host, at the size that holds any mix: a
captured CUDA graph makes them anew in each replay. Runs of at least one row, R of them in S rows,
make R + (S - R) // 16 tiles at most, which grows with R, and there are no more runs than pairs, nor
than experts times adapters. A row's pages are those of the tile that has it.
"""

from typing import NamedTuple

import torch

from multilora_kernels.openai_triton import uses_kernels
from multilora_kernels.row_groups import Segment, row_groups
from multilora_kernels.segments import DECODE_TILE, LoRASegments

_NO_ADAPTER = -1


class ExpertRows(NamedTuple):
    """S = T · k pairs of T rows, sorted. Filled by expert_rows."""

    pairs: torch.Tensor  # int64 [S], row · k + which of its experts
    rows: torch.Tensor  # int64 [S]
    experts: torch.Tensor  # int64 [S], ascending
    ends: torch.Tensor  # int32 [E], behind the last pair of each expert
    segments: LoRASegments  # of the pairs


def expert_rows(index: torch.Tensor, num_experts: int, segments: LoRASegments) -> ExpertRows:
    """`index` int64 [T, k]: the experts of each row, all below `num_experts`; `segments` are those
    of the T rows."""
    tiles = None if not uses_kernels(index) else _tiles_of_rows(segments, len(index))
    adapters = _on_host(segments, len(index)) if tiles is None else _of_tiles(segments, tiles)
    key = (index << 32) + (adapters + 1)[:, None]
    key, pairs = key.flatten().sort(stable=True)
    experts, rows = key >> 32, pairs // index.shape[1]
    every = torch.arange(num_experts, device=index.device)
    ends = torch.searchsorted(experts, every, right=True, out_int32=True)
    if tiles is None:
        made = _cpu_segments(key, num_experts, segments)
    else:
        made = _gpu_segments(key, tiles[rows], num_experts, segments)
    return ExpertRows(pairs, rows, experts, ends, made)


def _tiles_of_rows(segments: LoRASegments, num_rows: int) -> torch.Tensor:
    """int64 [T]: the tile that each row is in. Tiles are in the order of rows, then padding."""
    starts, counts = segments.tiles[:, 0], segments.tiles[:, 1]
    starts = torch.where(counts > 0, starts, num_rows)
    every = torch.arange(num_rows, device=starts.device, dtype=starts.dtype)
    return torch.searchsorted(starts.contiguous(), every, right=True) - 1


def _of_tiles(segments: LoRASegments, tiles: torch.Tensor) -> torch.Tensor:
    """int64 [T]: the first page of each row's adapter, which belongs to no other."""
    first, end = segments.tiles[tiles, 2], segments.tiles[tiles, 3]
    if not len(segments.pairs):
        return torch.full_like(tiles, _NO_ADAPTER)
    pages = segments.pairs[first.clamp(max=len(segments.pairs) - 1).long(), 2]
    return torch.where(end > first, pages, _NO_ADAPTER).long()


def _gpu_segments(
    key: torch.Tensor, tiles: torch.Tensor, num_experts: int, segments: LoRASegments
) -> LoRASegments:
    """`tiles` int64 [S]: of the T rows, by pair."""
    size, device = len(key), key.device
    runs = max(1, min(size, segments.most_segments * num_experts))
    max_tiles = runs + (size - runs) // DECODE_TILE
    max_pairs = max_tiles * min(segments.most_pages, len(segments.pairs))
    every = torch.arange(max(size, max_tiles, max_pairs), device=device)
    run = torch.zeros_like(key)  # the number of the run that each pair is in, ascending
    run[1:] = (key[1:] != key[:-1]).cumsum(0)
    in_run = every[:size] - torch.searchsorted(run, run)
    starts_tile = (in_run % DECODE_TILE == 0) & (key % (1 << 32) > 0)
    starts = torch.searchsorted(starts_tile.cumsum(0), every[:max_tiles] + 1)
    at = starts.clamp(max=size - 1)
    counts = (torch.searchsorted(run, run[at], right=True) - at).clamp_(max=DECODE_TILE)
    is_tile = starts < size  # what follows the last one is padding
    source = segments.tiles[tiles[at]].long()  # of the batch: where the pages of the tile stand
    pages = (source[:, 3] - source[:, 2]) * is_tile
    ends = pages.cumsum(0)
    table = torch.stack((starts * is_tile, counts * is_tile, ends - pages, ends), dim=1)
    item = every[:max_pairs]  # a (tile, page) pair, as many as ends[-1]
    tile = torch.searchsorted(ends, item, right=True).clamp_(max=max_tiles - 1)
    pair = source[tile, 2] + item - table[tile, 2]
    entry = segments.pairs[pair.clamp_(0, len(segments.pairs) - 1), 2] * num_experts
    entry = entry + (key[at] >> 32)[tile]
    made = torch.stack((table[tile, 0], table[tile, 1], entry, torch.zeros_like(entry)), dim=1)
    made = made * (item < ends[-1])[:, None]
    num_tiles = is_tile.sum()
    totals = torch.stack((ends[-1], num_tiles, num_tiles, torch.zeros_like(num_tiles)))
    return LoRASegments(
        totals.int(), table.int(), made.int(), DECODE_TILE, max_tiles, size, (), (),
        runs, segments.most_pages,
    )  # fmt: skip


def _on_host(segments: LoRASegments, num_rows: int) -> torch.Tensor:
    """int64 [T]: which segment each row is in."""
    counts = [count for _, count, _ in segments.segments]
    numbers = [*range(len(counts)), _NO_ADAPTER]
    repeats = torch.tensor([*counts, num_rows - sum(counts)])
    return torch.tensor(numbers).repeat_interleave(repeats)


def _cpu_segments(key: torch.Tensor, num_experts: int, segments: LoRASegments) -> LoRASegments:
    values, counts = torch.unique_consecutive(key, return_counts=True)
    runs: list[Segment] = []
    start = 0
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        expert, number = value >> 32, value % (1 << 32) - 1
        pages = () if number == _NO_ADAPTER else segments.segments[number].pages
        runs.append(Segment(start, count, tuple(page * num_experts + expert for page in pages)))
        start += count
    none = torch.zeros(0, 4, dtype=torch.int32)
    return LoRASegments(
        none[0:0], none, none, DECODE_TILE, 0, start, tuple(runs), row_groups(runs),
        len(runs), segments.most_pages,
    )  # fmt: skip


def expert_rows_reference(
    index: torch.Tensor, num_experts: int, segments: LoRASegments
) -> list[tuple[int, int, tuple[int, ...]]]:
    """(row, expert, entries of the pool) of all pairs, ascending."""
    found: list[tuple[int, int, tuple[int, ...]]] = []
    for row, experts in enumerate(index.tolist()):
        own = [s.pages for s in segments.segments if 0 <= row - s.row_start < s.row_count]
        pages = own[0] if own else ()
        for expert in experts:
            found.append((row, expert, tuple(page * num_experts + expert for page in pages)))
    return sorted(found)
