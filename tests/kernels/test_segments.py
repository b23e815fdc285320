"""The tables of (tile, page) pairs that the kernels walk over."""

import random

import numpy as np
import pytest
import torch

from multilora_kernels.row_groups import Segment
from multilora_kernels.segments import (
    DECODE_TILE,
    PREFILL_TILE,
    LaunchBounds,
    LoRASegments,
    SegmentTables,
    segment_tables,
)
from support.kernels.cases import lora_case


def random_segments(noise: random.Random, longest: int, rows: int = 10**9) -> tuple[Segment, ...]:
    """Of adapters with up to 8 pages each, no page twice."""
    segments: list[Segment] = []
    start = page = 0
    for _ in range(noise.randrange(12)):
        count = min(noise.randrange(longest + 1), rows - start)
        pages = tuple(range(page, page + noise.randrange(9)))
        segments.append(Segment(start, count, pages))
        start, page = start + count, page + len(pages)
    return tuple(segments)


def expected(
    segments: tuple[Segment, ...], num_rows: int, tile_rows: int
) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """Counts, tiles and pairs, one after the other."""
    tiles: list[list[int]] = []
    pairs: list[list[int]] = []
    for start, count, pages in segments:
        for row in range(start, start + count, tile_rows):
            rows = [row, min(tile_rows, start + count - row)]
            tiles.append([*rows, len(pairs), len(pairs) + len(pages)])
            pairs += [[*rows, page, 0] for page in pages]
    counts = [len(pairs), len(tiles)]
    for row in range(sum(segment.row_count for segment in segments), num_rows, tile_rows):
        tiles.append([row, min(tile_rows, num_rows - row), 0, 0])
    return [*counts, len(tiles), 0], tiles, pairs


@pytest.mark.parametrize("longest", [1, 16, 200])
@pytest.mark.parametrize("seed", range(20))
def test_tables_are_what_loops_would_make(longest: int, seed: int):
    noise = random.Random(seed)
    segments = random_segments(noise, longest)
    rows = sum(segment.row_count for segment in segments)
    num_rows = rows + noise.choice([0, 1, 16, 100])
    tables = segment_tables(segments, num_rows)
    tall = any(segment.row_count > DECODE_TILE for segment in segments)
    assert tables.tile_rows == (PREFILL_TILE if tall else DECODE_TILE)
    counts, tiles, pairs = expected(segments, num_rows, tables.tile_rows)
    assert tables.counts.tolist() == counts
    assert tables.tiles.tolist() == tiles
    assert tables.pairs.tolist() == pairs
    assert tables.update_tiles == counts[1]
    assert {table.dtype for table in tables[:3]} == {np.dtype(np.int32)}
    assert_padded(segments, num_rows, tables)


def assert_padded(segments: tuple[Segment, ...], num_rows: int, tables: SegmentTables):
    """With bounds the same, then entries without rows."""
    num_tiles, num_pairs = len(tables.tiles), len(tables.pairs)
    bounds = LaunchBounds(num_tiles + 3, num_pairs + 5, tables.tile_rows)
    padded = segment_tables(segments, num_rows, bounds)
    assert np.array_equal(padded.counts, tables.counts)
    assert np.array_equal(padded.tiles[:num_tiles], tables.tiles)
    assert np.array_equal(padded.pairs[:num_pairs], tables.pairs)
    assert padded.tiles[num_tiles:].shape == (3, 4)
    assert padded.pairs[num_pairs:].shape == (5, 4)
    assert not padded.tiles[num_tiles:].any()
    assert padded.update_tiles == len(padded.tiles)


@pytest.mark.parametrize("pool_pages", [40, 10**6])
@pytest.mark.parametrize("sequences", [1, 3, 12, 600])
@pytest.mark.parametrize("rows", [1, 7, 16, 33, 256, 512])
def test_bounds_of_a_pass_hold_any_mix(rows: int, sequences: int, pool_pages: int):
    bounds = LaunchBounds.for_pass(rows, sequences, 8, pool_pages)
    for seed in range(200):
        noise = random.Random(seed)
        segments = random_segments(noise, noise.choice([1, 17, rows]), rows)
        while sum(len(segment.pages) for segment in segments) > pool_pages or (
            sum(segment.row_count > 0 for segment in segments) > sequences
        ):
            segments = segments[:-1]
        segment_tables(segments, rows, bounds)


def singles(count: int) -> tuple[Segment, ...]:
    return tuple(Segment(row, 1, tuple(range(8 * row, 8 * row + 8))) for row in range(count))


@pytest.mark.parametrize(
    ("segments", "sequences", "pool_pages"),
    [
        (singles(33), 33, 8 * 33),  # each row has an adapter
        ((Segment(0, 33, tuple(range(8))),), 33, 8),  # one adapter has rows for many tiles
        ((*singles(2), Segment(2, 31, tuple(range(16, 24)))), 3, 10**6),  # one of few is long
    ],
)
def test_bounds_of_a_pass_are_met(segments: tuple[Segment, ...], sequences: int, pool_pages: int):
    bounds = LaunchBounds.for_pass(33, sequences, 8, pool_pages)
    assert segment_tables(segments, 33, bounds).counts[0] == bounds.pairs


def test_tiles_of_a_pass_are_met():
    """Rows of two sequences' adapters, and padding: a run of 1, one of 17, and one of 15."""
    bounds = LaunchBounds.for_pass(33, 2, 8, 10**6)
    segments = (Segment(0, 1, (0,)), Segment(1, 17, (1,)))
    assert segment_tables(segments, 33, bounds).counts[2] == bounds.tiles == 4


def test_more_than_the_launch_bounds_is_refused():
    case = lora_case([1] * 5, [40], (8,), 8)  # 5 adapter tiles, 1 tile of base rows, 15 pairs
    for bounds, what in (((5, 15), "6 tiles"), ((6, 14), "15 pairs")):
        with pytest.raises(ValueError, match=f"{what}, but"):
            case.segments(LaunchBounds(*bounds))
    case.segments(LaunchBounds(6, 15))


def test_static_tensors_take_the_place_of_the_tables():
    tables = segment_tables((), 4, LaunchBounds(4, 8))
    counts, tiles, pairs = (torch.from_numpy(table) for table in tables[:3])
    segments = LoRASegments.of_tables(tables, counts, tiles, pairs, 4)
    assert segments.counts is counts
    assert segments.tiles is tiles
    assert segments.pairs is pairs
    assert (segments.tile_rows, segments.update_tiles, segments.num_rows) == (DECODE_TILE, 4, 4)
    assert (segments.segments, segments.groups) == ((), ())


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        ([(0, 2, (0,)), (3, 1, (1,))], "must start at row 2"),
        ([(0, -1, (0,))], "must start at row 0"),
        ([(0, 9, (0,))], "cover 9 rows of 8"),
        ([(0, 1, ()), (1, 1, (3, -1))], "row_start=1.* negative page"),
    ],
)
def test_segments_that_are_none_are_refused(
    segments: list[tuple[int, int, tuple[int, ...]]], reason: str
):
    with pytest.raises(ValueError, match=reason):
        segment_tables([Segment(*fields) for fields in segments], 8)
