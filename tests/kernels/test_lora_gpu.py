"""The GPU kernels of shrink and expand: on a GPU, or interpreted (see test_interpreter)."""

import pytest
import torch

from kernel_cases import (
    DEVICE,
    DTYPES,
    INTERPRETED,
    MIXES,
    LoRACase,
    assert_close,
    lora_case,
    needs_gpu,
)
from multilora_kernels.expand import expand_gpu, expand_reference
from multilora_kernels.lora import add_lora
from multilora_kernels.segments import LaunchBounds, LoRASegments
from multilora_kernels.shrink import shrink_gpu, shrink_reference

pytestmark = needs_gpu
RANKS = [[8, 40, 16]] if INTERPRETED else [[1], [16], [8, 128, 16, 33, 64]]
SHAPES = [((40, 24, 24), 80)] if INTERPRETED else [((4096, 1024, 1024), 4096), ((520,), 1032)]


def run(case: LoRACase, segments: LoRASegments) -> torch.Tensor:
    y = case.y.clone()
    if segments.num_rows:
        h = shrink_gpu(case.x, case.a, segments)
        expand_gpu(h, case.b, case.slice_sizes, segments, y)
    return y


def expected(case: LoRACase) -> torch.Tensor:
    segments = case.segments()
    h = shrink_reference(case.x, case.a, segments)
    return expand_reference(h, case.b, case.slice_sizes, segments, case.y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ranks", RANKS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mix", MIXES.values(), ids=list(MIXES))
def test_against_the_reference(
    mix: list[int], shape: tuple[tuple[int, ...], int], ranks: list[int], dtype: torch.dtype
):
    case = lora_case(mix, ranks, *shape, dtype=dtype, device=DEVICE)
    y = run(case, case.segments())
    assert_close(y, expected(case), dtype)
    assert torch.equal(y[-3:], case.y[-3:])


@pytest.mark.parametrize("slice_sizes", [(70,), (33, 150)], ids=str)
def test_one_and_two_slices_and_splits(slice_sizes: tuple[int, ...]):
    """1100 input features make two splits; 150 columns make two column blocks."""
    dtype = DTYPES[0]
    case = lora_case([2, 1], [16, 20], slice_sizes, 1100, dtype=dtype, device=DEVICE)
    assert_close(run(case, case.segments()), expected(case), dtype)


def test_padded_tables_change_nothing():
    dtype = DTYPES[0]
    case = lora_case([2, 1, 4], [16, 20], (24,), 64, dtype=dtype, device=DEVICE)
    padded = case.segments(LaunchBounds(10, 40, 3))
    assert len(padded.tiles) > len(case.segments().tiles)
    assert torch.equal(run(case, padded), run(case, case.segments()))


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_graph_replay_is_right_for_other_mixes(dtype: torch.dtype):
    """Captured over full tables, replayed after their contents were overwritten."""
    cases = [
        lora_case(mix, [16, 40], (256, 64), 512, dtype, DEVICE, base_rows=16 - sum(mix), seed=seed)
        for seed, mix in enumerate(([1] * 16, [1], [1, 1], [7, 1, 3], []))
    ]
    first = cases[0]
    bounds = LaunchBounds(segments=16, pages=48, pages_per_segment=3)
    segments = first.segments(bounds)
    x, a, b, y = (part.clone() for part in (first.x, first.a, first.b, first.y))
    assert len(a) == max(len(case.a) for case in cases)
    add_lora(y, x, a, b, first.slice_sizes, segments)  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        add_lora(y, x, a, b, first.slice_sizes, segments)
    for case in reversed(cases):
        tables = case.segments(bounds)
        segments.tiles.copy_(tables.tiles)
        segments.pages.copy_(tables.pages)
        x.copy_(case.x)
        y.copy_(case.y)
        a[: len(case.a)].copy_(case.a)
        b[: len(case.b)].copy_(case.b)
        graph.replay()
        assert_close(y, expected(case), dtype)
