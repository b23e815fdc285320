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

from multilora_kernels.row_groups import RowGroup, Segment, row_groups

EntryT = TypeVar("EntryT")

PAGE_RANK = 16  # rank rows of one page
DECODE_TILE = 16  # rows of one tensor-core operand
PREFILL_TILE = 64


class LaunchBounds(NamedTuple):
    """What a launch that is replayed (a CUDA graph) must be able to hold, whatever the mix."""

    segments: int
    pages: int  # over all segments
    pages_per_segment: int
    tile_rows: int = DECODE_TILE


@dataclass(frozen=True, eq=False)
class LoRASegments:
    """Filled by from_lists. S segments, P pages in all, R adapter rows of T."""

    tiles: torch.Tensor  # int32 [max_tiles, 4]: row_start, row_count, first and end in `pages`
    pages: torch.Tensor  # int32 [max_pages]
    tile_rows: int
    max_pages_per_segment: int
    num_rows: int  # R; with bounds, T
    segments: tuple[Segment, ...]
    groups: tuple[RowGroup, ...]  # what the CPU path multiplies; empty on a GPU

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
        flat = [page for segment in segments for page in segment.pages]
        launch = _tightest(segments)
        tiles = _tiles(segments, bounds.tile_rows if bounds else launch.tile_rows)
        if bounds:
            _check_bounds(launch, bounds)
            tiles += _padding(bounds.segments + num_rows // bounds.tile_rows - len(tiles), (0,) * 4)
            flat += _padding(bounds.pages - len(flat), 0)
            launch = bounds
        on_cpu = torch.device(device).type == "cpu"
        return LoRASegments(
            tiles=torch.tensor(tiles, dtype=torch.int32, device=device).view(-1, 4),
            pages=torch.tensor(flat, dtype=torch.int32, device=device),
            tile_rows=launch.tile_rows,
            max_pages_per_segment=launch.pages_per_segment,
            num_rows=num_rows if bounds else sum(segment.row_count for segment in segments),
            segments=segments,
            groups=row_groups(segments, dtype) if on_cpu else (),
        )


def _tightest(segments: Sequence[Segment]) -> LaunchBounds:
    """The tightest bounds; tall tiles when an adapter has rows to fill them."""
    return LaunchBounds(
        segments=len(segments),
        pages=sum(len(segment.pages) for segment in segments),
        pages_per_segment=max((len(segment.pages) for segment in segments), default=0),
        tile_rows=DECODE_TILE
        if all(segment.row_count <= DECODE_TILE for segment in segments)
        else PREFILL_TILE,
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
        if any(page < 0 for page in segment.pages):
            raise ValueError(f"segment {segment} names a negative page")
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
