"""LoRASegments: which rows of a batch belong to which adapter, and on which rank pages.

Rows are sorted by adapter with base-only rows last, so an adapter is one contiguous segment of
rows and no kernel gathers rows. A tile is at most `tile_rows` rows of one segment; work is a list
of (tile, page) pairs, those of one tile together. Tiles go on over the base rows, with no pairs,
so that what reads a projection and adds the update on the fly can walk over all rows.

How much of the tables is real stands in `counts`, on the device, and entries past it have no rows:
a launch for the full tables (a captured CUDA graph) is right for any mix written into them.
Source: segmented gather matrix-vector multiplication, Punica (arXiv 2310.18547).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from multilora_kernels.openai_triton import INTERPRETED
from multilora_kernels.row_groups import RowGroup, Segment, row_groups

PAGE_RANK = 16  # rank rows of one page
DECODE_TILE = 16  # rows of one tensor-core operand
PREFILL_TILE = 64


class LaunchBounds(NamedTuple):
    """What a launch that is replayed (a CUDA graph) must be able to hold, whatever the mix."""

    tiles: int  # base rows included
    pairs: int
    tile_rows: int = DECODE_TILE
    segments: int = 0  # with pages; 0: as many as tiles
    pages: int = 0  # of one segment; 0: as many as pairs

    @staticmethod
    def for_pass(
        rows: int, sequences: int, pages_per_adapter: int, pool_pages: int
    ) -> "LaunchBounds":
        """Right for any mix of `rows` rows of up to `sequences` sequences, some of them padding,
        and adapters of up to `pages_per_adapter` pages.

        Tiles of 16 rows. A run of n rows makes 1 + (n - 1) // 16 of them; runs are the adapters'
        segments, no more than sequences, and the base rows, padding among them. So R runs make at
        most R + (rows - R) // 16 tiles, which grows with R, and no run is empty.

        A segment's pages are in one pair for each of its tiles: for its first one, which all
        segments together make no more pairs than there are pages (each page belongs to one
        adapter) or pages_per_adapter for each of A segments; and for (rows - A) // 16 further ones.
        """
        segments, runs = min(sequences, rows), min(sequences + 1, rows)
        further = (rows - segments) // DECODE_TILE
        of_segments = (segments + further) * pages_per_adapter
        of_pool = pool_pages + (rows - 1) // DECODE_TILE * pages_per_adapter
        tiles = runs + (rows - runs) // DECODE_TILE
        pages = min(pages_per_adapter, pool_pages)
        return LaunchBounds(tiles, min(of_segments, of_pool), DECODE_TILE, segments, pages)


class SegmentTables(NamedTuple):
    """Host side of LoRASegments. Filled by segment_tables."""

    counts: np.ndarray  # int32 [4]: pairs, adapter tiles, tiles (those of base rows included), 0
    tiles: np.ndarray  # int32 [max_tiles, 4]: row_start, row_count, first_pair, end_pair
    pairs: np.ndarray  # int32 [max_pairs, 4]: row_start, row_count, page, 0
    tile_rows: int
    update_tiles: int  # tiles from here on have no pairs, in any mix that the tables can hold
    most_segments: int  # with pages, in such a mix
    most_pages: int  # of one of them


def segment_tables(
    segments: Sequence[Segment], num_rows: int, bounds: LaunchBounds | None = None
) -> SegmentTables:
    """Segments in row order, contiguous from row 0; rows from there to `num_rows` are base.

    With `bounds` the tables have the size of the bounds. ValueError when these are no such
    segments, or exceed the bounds. Once per forward pass, hence no loop over segments.
    """
    starts, counts, num_pages, pages = _columns(segments)
    _check(segments, starts, counts, pages, num_rows)
    tall = bool((counts > DECODE_TILE).any())
    tile_rows = bounds.tile_rows if bounds else PREFILL_TILE if tall else DECODE_TILE
    owner, adapter_tiles = _cut(starts, counts, tile_rows)
    per_tile = num_pages[owner]
    ends = np.cumsum(per_tile)
    pair_tile = np.repeat(np.arange(len(owner)), per_tile)
    first_page = np.cumsum(num_pages) - num_pages
    skip = first_page[owner] - (ends - per_tile)  # of a tile: from index of pair to that of page
    base_start, num_pairs = int(counts.sum()), len(pair_tile)
    _, base_tiles = _cut(np.array([base_start]), np.array([num_rows - base_start]), tile_rows)
    num_tiles = len(adapter_tiles) + len(base_tiles)
    if bounds:
        _check_bounds(num_tiles, num_pairs, bounds)
    tiles = np.zeros((bounds.tiles if bounds else num_tiles, 4), dtype=np.int32)
    tiles[: len(owner), :2] = adapter_tiles
    tiles[: len(owner), 2], tiles[: len(owner), 3] = ends - per_tile, ends
    tiles[len(owner) : num_tiles, :2] = base_tiles
    pairs = np.zeros((bounds.pairs if bounds else num_pairs, 4), dtype=np.int32)
    pairs[:num_pairs, :2] = adapter_tiles[pair_tile]
    pairs[:num_pairs, 2] = pages[np.arange(num_pairs) + skip[pair_tile]]
    return SegmentTables(
        np.array([num_pairs, len(owner), num_tiles, 0], dtype=np.int32), tiles, pairs, tile_rows,
        len(tiles) if bounds else len(owner), *_most(num_pages, bounds),
    )  # fmt: skip


def _most(num_pages: np.ndarray, bounds: LaunchBounds | None) -> tuple[int, int]:
    """How many segments have pages, and how many one has."""
    if bounds:
        return bounds.segments or bounds.tiles, bounds.pages or bounds.pairs
    return int((num_pages > 0).sum()), int(num_pages.max(initial=0))


@dataclass(frozen=True, eq=False)
class LoRASegments:
    """Filled by from_lists or of_tables. The tensors are as SegmentTables has them."""

    counts: torch.Tensor
    tiles: torch.Tensor
    pairs: torch.Tensor
    tile_rows: int
    update_tiles: int
    num_rows: int  # T, base rows included
    segments: tuple[Segment, ...]  # from_lists only
    groups: tuple[RowGroup, ...]  # what the CPU path multiplies; empty where kernels run
    most_segments: int
    most_pages: int

    @staticmethod
    def from_lists(
        row_starts: Sequence[int],
        row_counts: Sequence[int],
        pages: Sequence[Sequence[int]],
        num_rows: int,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        bounds: LaunchBounds | None = None,
    ) -> "LoRASegments":
        """What segment_tables describes, on the device; `dtype` is that of the rows."""
        rows_and_pages = zip(row_starts, row_counts, map(tuple, pages), strict=True)
        segments = tuple(Segment(*fields) for fields in rows_and_pages)
        tables = segment_tables(segments, num_rows, bounds)
        kernels = torch.device(device).type == "cuda" or INTERPRETED
        return LoRASegments(
            *(torch.from_numpy(table).to(device) for table in tables[:3]),
            tables.tile_rows,
            tables.update_tiles,
            num_rows,
            segments,
            groups=() if kernels else row_groups(segments),
            most_segments=tables.most_segments,
            most_pages=tables.most_pages,
        )

    @staticmethod
    def of_tables(
        tables: SegmentTables,
        counts: torch.Tensor,
        tiles: torch.Tensor,
        pairs: torch.Tensor,
        num_rows: int,
    ) -> "LoRASegments":
        """For kernels only, over tables that are on the device: what `tables` holds or, if they
        have bounds, whatever is written there before a launch."""
        return LoRASegments(
            counts, tiles, pairs, tables.tile_rows, tables.update_tiles, num_rows, (), (),
            tables.most_segments, tables.most_pages,
        )  # fmt: skip


def _columns(
    segments: Sequence[Segment],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row starts, row counts, numbers of pages [S], and the pages of all segments."""
    starts, counts, pages = zip(*segments, strict=True) if segments else ((), (), ())
    num_pages = np.fromiter(map(len, pages), np.int64, len(pages))
    flat = np.fromiter(chain.from_iterable(pages), np.int64, int(num_pages.sum()))
    return np.array(starts, dtype=np.int64), np.array(counts, dtype=np.int64), num_pages, flat


def _cut(starts: np.ndarray, counts: np.ndarray, tile_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs of rows cut into tiles: [tiles] the run of each, and [tiles, 2] its start and count."""
    per_run = -(-counts // tile_rows)
    run = np.repeat(np.arange(len(counts)), per_run)
    ends = np.cumsum(per_run)
    done = (np.arange(len(run)) - (ends - per_run)[run]) * tile_rows
    return run, np.stack((starts[run] + done, np.minimum(counts[run] - done, tile_rows)), axis=1)


def _check(
    segments: Sequence[Segment],
    starts: np.ndarray,
    counts: np.ndarray,
    pages: np.ndarray,
    num_rows: int,
) -> None:
    ends = np.cumsum(counts)
    wrong = np.flatnonzero((starts != ends - counts) | (counts < 0))
    if len(wrong):
        segment, row = segments[wrong[0]], int((ends - counts)[wrong[0]])
        raise ValueError(f"segment {segment} must start at row {row}")
    if len(pages) and pages.min() < 0:
        negative = next(segment for segment in segments if min(segment.pages, default=0) < 0)
        raise ValueError(f"segment {negative} names a negative page")
    if len(ends) and ends[-1] > num_rows:
        raise ValueError(f"segments cover {ends[-1]} rows of {num_rows}")


def _check_bounds(tiles: int, pairs: int, bounds: LaunchBounds) -> None:
    for name, need, bound in (("tiles", tiles, bounds.tiles), ("pairs", pairs, bounds.pairs)):
        if need > bound:
            raise ValueError(f"{need} {name}, but the launch bounds allow {bound}")
