"""LoRASegments: which rows of a batch belong to which adapter, and on which rank pages.

Rows are sorted by adapter with base-only rows last, so an adapter is one contiguous segment of
rows and no kernel gathers rows. The host lists become one int32 table, `tiles`: each entry is at
most `tile_rows` rows of one segment with that segment's run in `pages`. Entries past the real
ones have no rows, so a launch over all of them (a captured CUDA graph) is right for any mix.
Source: segmented gather matrix-vector multiplication, Punica (arXiv 2310.18547).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch

PAGE_RANK = 16  # rank rows of one page
_DECODE_TILE = 16  # rows of one tensor-core operand
_PREFILL_TILE = 64
_SEGMENT_COST = 96  # what a segment of its own costs on a CPU, in (row, page) pairs; measured


class Segment(NamedTuple):
    """Host view of one adapter's rows [row_start, row_start + row_count) and its pages."""

    row_start: int
    row_count: int
    pages: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LoRASegments:
    """Filled by from_lists. S segments, P pages in all, R adapter rows of T."""

    tiles: torch.Tensor  # int32 [max_tiles, 4]: row_start, row_count, first and end in `pages`
    pages: torch.Tensor  # int32 [max_pages]
    tile_rows: int
    max_pages_per_segment: int
    num_rows: int  # R
    segments: tuple[Segment, ...]
    page_window: tuple[int, int]  # lowest page in use, one past the highest
    page_mask: torch.Tensor | None  # [R, window], 1 where the row owns the page; None: loop

    @staticmethod
    def from_lists(
        row_starts: Sequence[int],
        row_counts: Sequence[int],
        pages: Sequence[Sequence[int]],
        num_rows: int,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        max_segments: int | None = None,
        max_pages: int | None = None,
    ) -> "LoRASegments":
        """Segments in row order, contiguous from row 0; rows from there to `num_rows` are base.

        `dtype` is that of the rows. `max_segments` and `max_pages` pad the tables, for launches
        that are replayed. ValueError when the lists do not describe such segments.
        """
        segments = tuple(
            Segment(start, count, tuple(own))
            for start, count, own in zip(row_starts, row_counts, pages, strict=True)
        )
        _check(segments, num_rows)
        rows = sum(segment.row_count for segment in segments)
        largest = max((segment.row_count for segment in segments), default=0)
        tile_rows = _DECODE_TILE if largest <= _DECODE_TILE else _PREFILL_TILE
        tiles = _tiles(segments, tile_rows)
        limit = (max_segments or len(segments)) + num_rows // tile_rows
        tiles += [(0, 0, 0, 0)] * (limit - len(tiles) if max_segments else 0)
        flat = [page for segment in segments for page in segment.pages]
        longest = max((len(segment.pages) for segment in segments), default=0)
        flat_padded = flat + [0] * ((max_pages or 0) - len(flat))
        window = (min(flat), max(flat) + 1) if flat else (0, 0)
        dense = torch.device(device).type == "cpu" and _dense_is_faster(segments, rows, window)
        return LoRASegments(
            tiles=torch.tensor(tiles, dtype=torch.int32, device=device).view(-1, 4),
            pages=torch.tensor(flat_padded, dtype=torch.int32, device=device),
            tile_rows=tile_rows,
            max_pages_per_segment=longest,
            num_rows=rows,
            segments=segments,
            page_window=window,
            page_mask=_page_mask(segments, rows, window, dtype) if dense else None,
        )


def _check(segments: Sequence[Segment], num_rows: int) -> None:
    row = 0
    for segment in segments:
        if segment.row_start != row or segment.row_count < 0:
            raise ValueError(f"segment {segment} must start at row {row}")
        row += segment.row_count
    if row > num_rows:
        raise ValueError(f"segments cover {row} rows of {num_rows}")


def _tiles(segments: Sequence[Segment], tile_rows: int) -> list[tuple[int, int, int, int]]:
    ends = list(accumulate(len(segment.pages) for segment in segments))
    tiles: list[tuple[int, int, int, int]] = []
    for segment, end in zip(segments, ends, strict=True):
        stop = segment.row_start + segment.row_count
        for row in range(segment.row_start, stop, tile_rows):
            tiles.append((row, min(tile_rows, stop - row), end - len(segment.pages), end))
    return tiles


def _dense_is_faster(segments: Sequence[Segment], rows: int, window: tuple[int, int]) -> bool:
    """Multiply all rows with every page of the window, or segment by segment? In row-page pairs."""
    own = sum(segment.row_count * len(segment.pages) for segment in segments)
    return rows * (window[1] - window[0]) <= own + _SEGMENT_COST * len(segments)


def _page_mask(
    segments: Sequence[Segment], rows: int, window: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    owners: list[int] = []
    owned: list[int] = []
    for segment in segments:
        for row in range(segment.row_start, segment.row_start + segment.row_count):
            owners += [row] * len(segment.pages)
            owned += [page - window[0] for page in segment.pages]
    mask = torch.zeros(rows, window[1] - window[0], dtype=dtype)
    mask[owners, owned] = 1
    return mask
