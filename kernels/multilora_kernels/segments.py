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
from typing import NamedTuple, TypeVar

import torch

EntryT = TypeVar("EntryT")

PAGE_RANK = 16  # rank rows of one page
_DECODE_TILE = 16  # rows of one tensor-core operand
_PREFILL_TILE = 64
_SEGMENT_COST = 96  # what a segment of its own costs on a CPU, in (row, page) pairs; measured


class Segment(NamedTuple):
    """Host view of one adapter's rows [row_start, row_start + row_count) and its pages."""

    row_start: int
    row_count: int
    pages: tuple[int, ...]


class LaunchBounds(NamedTuple):
    """What a launch that is replayed (a CUDA graph) must be able to hold, whatever the mix."""

    segments: int
    pages: int  # over all segments
    pages_per_segment: int
    tile_rows: int = _DECODE_TILE


@dataclass(frozen=True, eq=False)
class LoRASegments:
    """Filled by from_lists. S segments, P pages in all, R adapter rows of T."""

    tiles: torch.Tensor  # int32 [max_tiles, 4]: row_start, row_count, first and end in `pages`
    pages: torch.Tensor  # int32 [max_pages]
    tile_rows: int
    max_pages_per_segment: int
    num_rows: int  # R; with bounds, T
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
        bounds: LaunchBounds | None = None,
    ) -> "LoRASegments":
        """Segments in row order, contiguous from row 0; rows from there to `num_rows` are base.

        `dtype` is that of the rows. With `bounds` the tables and launches have the size of the
        bounds. ValueError when the lists do not describe such segments, or exceed the bounds.
        """
        rows_and_pages = zip(row_starts, row_counts, map(tuple, pages), strict=True)
        segments = tuple(Segment(*fields) for fields in rows_and_pages)
        _check(segments, num_rows)
        rows = num_rows if bounds else sum(segment.row_count for segment in segments)
        flat = [page for segment in segments for page in segment.pages]
        launch = bounds or _bounds(segments)
        tiles = _tiles(segments, launch.tile_rows)
        if bounds:
            _check_bounds(_bounds(segments), bounds)
            tiles += _padding(bounds.segments + num_rows // launch.tile_rows - len(tiles), (0,) * 4)
            flat_padded = flat + _padding(bounds.pages - len(flat), 0)
        else:
            flat_padded = flat
        window = (min(flat), max(flat) + 1) if flat else (0, 0)
        dense = torch.device(device).type == "cpu" and _dense_is_faster(segments, rows, window)
        return LoRASegments(
            tiles=torch.tensor(tiles, dtype=torch.int32, device=device).view(-1, 4),
            pages=torch.tensor(flat_padded, dtype=torch.int32, device=device),
            tile_rows=launch.tile_rows,
            max_pages_per_segment=launch.pages_per_segment,
            num_rows=rows,
            segments=segments,
            page_window=window,
            page_mask=_page_mask(segments, rows, window, dtype) if dense else None,
        )


def _bounds(segments: Sequence[Segment]) -> LaunchBounds:
    """The tightest bounds; tall tiles when an adapter has rows to fill them."""
    return LaunchBounds(
        segments=len(segments),
        pages=sum(len(segment.pages) for segment in segments),
        pages_per_segment=max((len(segment.pages) for segment in segments), default=0),
        tile_rows=_DECODE_TILE
        if all(segment.row_count <= _DECODE_TILE for segment in segments)
        else _PREFILL_TILE,
    )


def _check_bounds(needed: LaunchBounds, bounds: LaunchBounds) -> None:
    for name in ("segments", "pages", "pages_per_segment"):
        need, bound = getattr(needed, name), getattr(bounds, name)
        if need > bound:
            raise ValueError(f"{need} {name}, but the launch bounds allow {bound}")


def _padding(count: int, entry: EntryT) -> list[EntryT]:
    return [entry] * count


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
