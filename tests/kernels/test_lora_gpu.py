"""The GPU kernels of shrink and expand: on a GPU, or interpreted (see test_interpreter)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from multilora_kernels.expand import expand_reference
from multilora_kernels.lora import add_lookup, add_lora, expand, shrink
from multilora_kernels.row_groups import Segment
from multilora_kernels.segments import (
    DECODE_TILE,
    PREFILL_TILE,
    LaunchBounds,
    LoRASegments,
    segment_tables,
)
from multilora_kernels.shrink import shrink_gpu, shrink_plan, shrink_reference
from support.kernels.cases import (
    DEVICE,
    DTYPES,
    INTERPRETED,
    MIXES,
    LoRACase,
    assert_close,
    lookup_case,
    lora_case,
    needs_gpu,
)

pytestmark = needs_gpu
RANKS = [[8, 40, 16]] if INTERPRETED else [[1], [16], [8, 128, 16, 33, 64]]
SHAPES = [((40, 24, 24), 80)]
if not INTERPRETED:
    SHAPES = [((4096, 1024, 1024), 4096), ((520,), 1032), ((4096,), 14336)]


def run(case: LoRACase, segments: LoRASegments) -> torch.Tensor:
    y = case.y.clone()
    add_lora(y, case.x, case.a, case.b, case.slice_sizes, segments)
    return y


def expected(case: LoRACase) -> torch.Tensor:
    segments = case.segments()
    h = shrink_reference(case.x, case.a, segments)
    return expand_reference(h, case.b, case.slice_sizes, segments, case.y)


@pytest.mark.parametrize(
    ("mix", "dtype"),
    [*((mix, DTYPES[0]) for mix in MIXES), *((mix, DTYPES[1]) for mix in ("skewed", "prefill"))],
    ids=str,
)
@pytest.mark.parametrize("ranks", RANKS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(
    mix: str, shape: tuple[tuple[int, ...], int], ranks: list[int], dtype: torch.dtype
):
    case = lora_case(MIXES[mix], ranks, *shape, dtype=dtype, device=DEVICE)
    y = run(case, case.segments())
    assert_close(y, expected(case), dtype)
    assert torch.equal(y[-3:], case.y[-3:])
    delta = expand(shrink(case.x, case.a, case.b, case.slice_sizes, case.segments()))
    assert_close(delta, expected(case) - case.y.double(), dtype)
    assert delta[-3:].eq(0).all()


@pytest.mark.parametrize("bounds", [None, LaunchBounds(80, 200)], ids=["exact", "bounds"])
@pytest.mark.parametrize("mix", ["skewed", "prefill", "none", "with an empty one"])
def test_token_ids_against_the_reference(mix: str, bounds: LaunchBounds | None):
    case, ids = lookup_case(MIXES[mix], [8, 40, 16], 40, 70, DTYPES[0], DEVICE)
    y = case.y.clone()
    add_lookup(y, ids, case.a, case.b, case.segments(bounds))
    assert_close(y, expected(case), DTYPES[0])
    assert torch.equal(y[-3:], case.y[-3:])


def test_every_rank_in_one_batch():
    """One row for each rank from 1 to 128; interpreted, for a few of them."""
    ranks = [1, 15, 16, 17, 128] if INTERPRETED else list(range(1, 129))
    dtype = DTYPES[0]
    case = lora_case([1] * len(ranks), ranks, (40,), 64, dtype=dtype, device=DEVICE)
    assert_close(run(case, case.segments()), expected(case), dtype)


MANY = 5 if INTERPRETED else 300  # more rows than programs that are resident


@pytest.mark.parametrize(
    ("mix", "splits"),
    [([2, 1], 3), ([17, 1], 3), ([17, *[1] * MANY], 2)],
    ids=["decode", "prefill", "long prefill"],
)
@pytest.mark.parametrize(("slice_sizes", "in_features"), [((70,), 1280), ((33, 150), 1100)])
def test_one_and_two_slices_and_splits(
    slice_sizes: tuple[int, ...], in_features: int, mix: list[int], splits: int
):
    """Neither ends where a split ends, one where a block of the loop does; 150 columns make two
    column blocks."""
    case = lora_case(mix, [16, 20], slice_sizes, in_features, dtype=DTYPES[0], device=DEVICE)
    assert shrink_plan(case.x, 16, case.segments()).splits == splits
    assert_close(run(case, case.segments()), expected(case), DTYPES[0])


def test_more_items_than_programs():
    slice_sizes = (300, 100) if INTERPRETED else (2048, 300)
    case = lora_case([1] * MANY, [16], slice_sizes, 64, dtype=DTYPES[0], device=DEVICE)
    assert_close(run(case, case.segments()), expected(case), DTYPES[0])


@pytest.mark.parametrize("mix", [[3, 1, 1], [17, 2]], ids=["decode", "prefill"])
def test_nothing_else_is_read_and_repetition_gives_the_same_bits(
    mix: list[int], monkeypatch: pytest.MonkeyPatch
):
    """Pages of others, h before the shrink, the rows that fill up a tile: all NaN."""
    case = lora_case(mix, [8, 40, 16], (40, 24), 1100, DTYPES[0], DEVICE, spread=3)
    segments = case.segments()
    first = run(case, segments)
    assert_close(first, expected(case), DTYPES[0])
    own = [page for pages in case.pages for page in pages]
    others = [page for page in range(len(case.a)) if page not in own]
    case.a[others], case.b[others] = torch.nan, torch.nan
    case.x[-3:] = torch.nan  # base rows
    monkeypatch.setattr(torch, "empty", _filled_with_nan(torch.empty))
    assert shrink_gpu(case.x, case.a, segments).isnan().any()
    for _ in range(2):
        assert torch.equal(run(case, segments), first)
        assert segments.pairs[:, 3].eq(0).all(), "how many splits arrived starts anew"


def _filled_with_nan(empty: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *shape, **options: empty(*shape, **options).fill_(torch.nan)


@pytest.mark.parametrize("tile_rows", [DECODE_TILE, PREFILL_TILE])
def test_padded_tables_change_nothing(tile_rows: int):
    dtype = DTYPES[0]
    mix = [2, 1, 4] if tile_rows == DECODE_TILE else [2, 20, 4]
    case = lora_case(mix, [16, 20], (24,), 64, dtype=dtype, device=DEVICE)
    padded = case.segments(LaunchBounds(10, 40, tile_rows))
    tight = case.segments()
    assert len(padded.tiles) > len(tight.tiles)
    assert len(padded.pairs) > len(tight.pairs)
    assert padded.tile_rows == tight.tile_rows
    assert torch.equal(run(case, padded), run(case, tight))


def test_base_rows_alone_launch_nothing_without_bounds(monkeypatch: pytest.MonkeyPatch):
    case = lora_case([0], [16], (24,), 64, dtype=DTYPES[0], device=DEVICE)
    monkeypatch.setattr("multilora_kernels.shrink.shrink_kernel", None)
    monkeypatch.setattr("multilora_kernels.expand.expand_kernel", None)
    assert torch.equal(run(case, case.segments()), case.y)


def test_what_is_still_to_be_added_to_base_rows_alone_is_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "empty", _filled_with_nan(torch.empty))
    case = lora_case([0], [16], (24,), 64, dtype=DTYPES[0], device=DEVICE)
    delta = expand(shrink(case.x, case.a, case.b, case.slice_sizes, case.segments()))
    assert delta.shape == case.y.shape
    assert delta.eq(0).all()


ROWS = 8 if INTERPRETED else 32
REPLAYED = {  # rows of each adapter in the batches that follow each other through one launch
    "all adapters": [1] * ROWS, "one row": [1], "two": [1, 1], "seven": [1] * 7, "none": [],
    "one adapter has all rows": [ROWS], "skewed": [ROWS // 2, 2, 1],
}  # fmt: skip


@pytest.mark.parametrize("graph", [False, True], ids=["launched", "graph"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launch_over_static_tables_is_right_for_any_mix(dtype: torch.dtype, graph: bool):
    """Captured over the fullest tables, replayed after their contents were overwritten."""
    if graph and INTERPRETED:
        pytest.skip("CUDA graphs need a GPU")
    shape = ((40, 24), 64) if INTERPRETED else ((512, 128), 1024)
    cases = [
        lora_case(mix, [16, 40], *shape, dtype, DEVICE, base_rows=ROWS - sum(mix), seed=seed)
        for seed, mix in enumerate(REPLAYED.values())
    ]
    first = cases[0]
    pages = max(len(case.a) for case in cases)
    launch, static = _static_launch(first, LaunchBounds.for_pass(ROWS, ROWS, 3, pages))
    replay = _capture(launch) if graph else launch
    for case in cases[::-1] if INTERPRETED else (*cases[::-1], *cases):
        _refill(static, case)
        replay()
        assert_close(static["y"], expected(case), dtype)
        assert torch.equal(static["y"][sum(case.row_counts) :], case.y[sum(case.row_counts) :])


def _static_launch(
    case: LoRACase, bounds: LaunchBounds
) -> tuple[Callable[[], None], dict[str, Any]]:
    tables = segment_tables((), len(case.x), bounds)
    counts, tiles, pairs = (torch.from_numpy(table).to(DEVICE) for table in tables[:3])
    segments = LoRASegments.of_tables(tables, counts, tiles, pairs, len(case.x))
    x, a, b, y = (part.clone() for part in (case.x, case.a, case.b, case.y))
    static = {"x": x, "a": a, "b": b, "y": y, "tables": (counts, tiles, pairs), "bounds": bounds}
    return lambda: add_lora(y, x, a, b, case.slice_sizes, segments), static


def _refill(static: dict[str, Any], case: LoRACase) -> None:
    starts = [sum(case.row_counts[:i]) for i in range(len(case.row_counts))]
    segments = tuple(map(Segment, starts, case.row_counts, case.pages))
    tables = segment_tables(segments, len(case.x), static["bounds"])
    for place, table in zip(static["tables"], tables[:3], strict=True):
        place.copy_(torch.from_numpy(table))
    static["x"].copy_(case.x)
    static["y"].copy_(case.y)
    for name, pool in (("a", case.a), ("b", case.b)):
        static[name].fill_(torch.nan)
        static[name][: len(pool)] = pool


def _capture(launch: Callable[[], None]) -> Callable[[], None]:
    launch()  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph.replay
