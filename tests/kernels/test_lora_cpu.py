"""The CPU path of shrink and expand against the float64 reference, and LoRASegments itself."""

import dataclasses

import pytest
import torch

from kernel_cases import MIXES, LoRACase, assert_close, lora_case
from multilora_kernels.expand import expand_gpu, expand_reference
from multilora_kernels.lora import add_lora
from multilora_kernels.segments import LaunchBounds, LoRASegments
from multilora_kernels.shrink import shrink_reference


def expected(case: LoRACase) -> torch.Tensor:
    segments = case.segments()
    h = shrink_reference(case.x, case.a, segments)
    return expand_reference(h, case.b, case.slice_sizes, segments, case.y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranks", [[1], [16], [8, 128, 16, 33, 64]])
@pytest.mark.parametrize("mix", MIXES.values(), ids=list(MIXES))
def test_add_lora(mix: list[int], ranks: list[int], dtype: torch.dtype):
    case = lora_case(mix, ranks, (48, 24, 24), 40, dtype)
    want = expected(case)
    add_lora(case.y, case.x, case.a, case.b, case.slice_sizes, case.segments())
    assert_close(case.y, want, dtype)


@pytest.mark.parametrize("slice_sizes", [(7,), (5, 9), (64, 1, 3)])
@pytest.mark.parametrize("spread", [1, 40])
def test_dense_and_loop_agree_and_base_rows_stay(slice_sizes: tuple[int, ...], spread: int):
    case = lora_case(MIXES["skewed"], [16, 40], slice_sizes, 33, spread=spread)
    want, before, segments = expected(case), case.y.clone(), case.segments()
    for mask in (segments.page_mask, None):
        case.y.copy_(before)
        chosen = dataclasses.replace(segments, page_mask=mask)
        add_lora(case.y, case.x, case.a, case.b, slice_sizes, chosen)
        assert_close(case.y, want, torch.float32)
        assert torch.equal(case.y[-3:], before[-3:])


def test_the_path_follows_the_shape_of_the_work():
    decode = lora_case([1] * 16, [16], (8,), 8).segments()
    prefill = lora_case([400] * 4, [16], (8,), 8).segments()
    scattered = lora_case([1] * 16, [16], (8,), 8, spread=100).segments()
    assert decode.page_mask is not None
    assert prefill.page_mask is None
    assert scattered.page_mask is None


def test_segments_that_do_not_fit_the_rows_are_refused():
    with pytest.raises(ValueError, match="must start at row 2"):
        LoRASegments.from_lists([0, 3], [2, 1], [(0,), (1,)], 8, "cpu")
    with pytest.raises(ValueError, match="cover 9 rows of 8"):
        LoRASegments.from_lists([0], [9], [(0,)], 8, "cpu")


@pytest.mark.parametrize(
    ("bounds", "what"),
    [((4, 15, 3), "5 segments"), ((5, 14, 3), "15 pages"), ((5, 15, 2), "3 pages_per_segment")],
)
def test_more_than_the_launch_bounds_is_refused(bounds: tuple[int, int, int], what: str):
    case = lora_case([1] * 5, [40], (8,), 8)
    with pytest.raises(ValueError, match=f"{what}, but"):
        case.segments(LaunchBounds(*bounds))
    case.segments(LaunchBounds(5, 15, 3))


def test_more_slices_than_the_gpu_kernel_takes_are_refused():
    case = lora_case([1], [16], (8, 8, 8, 8), 8)
    with pytest.raises(ValueError, match="4 slices"):
        expand_gpu(torch.empty(0), case.b, case.slice_sizes, case.segments(), case.y)
