"""The CPU path of shrink and expand against the float64 reference, and what groups its rows."""

import os
import subprocess
import sys

import pytest
import torch

from multilora_kernels import row_groups
from multilora_kernels.expand import expand_gpu, expand_reference
from multilora_kernels.lookup import lookup_reference
from multilora_kernels.lora import add_lookup, add_lora
from multilora_kernels.row_groups import Segment
from multilora_kernels.segments import LoRASegments
from multilora_kernels.shrink import shrink_reference
from support.kernels.cases import MIXES, LoRACase, assert_close, lookup_case, lora_case


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [1, 40])
@pytest.mark.parametrize("mix", MIXES.values(), ids=list(MIXES))
def test_add_lookup(mix: list[int], spread: int, dtype: torch.dtype):
    """Token ids are one-hot rows: what shrink gives for these, not rounded."""
    case, ids = lookup_case(mix, [8, 40, 16], 24, 50, dtype, spread=spread)
    want, segments = expected(case), case.segments()
    for own, of_rows in zip(
        lookup_reference(ids, case.a, segments),
        shrink_reference(case.x, case.a, segments),
        strict=True,
    ):
        assert torch.equal(own, of_rows)
    add_lookup(case.y, ids, case.a, case.b, segments)
    assert_close(case.y, want, dtype)


@pytest.mark.parametrize("slice_sizes", [(7,), (5, 9), (64, 1, 3)])
@pytest.mark.parametrize("spread", [1, 40])
@pytest.mark.parametrize("pages", [0, 10**9], ids=["one by one", "together"])
def test_all_ways_agree_and_base_rows_stay(
    slice_sizes: tuple[int, ...], spread: int, pages: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(row_groups, "_PAGES", pages)
    case = lora_case(MIXES["distinct"], [16, 16, 16, 40], slice_sizes, 33, spread=spread)
    want, before = expected(case), case.y.clone()
    segments = case.segments()
    count = len(case.row_counts)
    assert len(segments.groups) == (count // 2 if pages else count)
    add_lora(case.y, case.x, case.a, case.b, slice_sizes, segments)
    assert_close(case.y, want, torch.float32)
    assert torch.equal(case.y[-3:], before[-3:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_adapters_beside_it(dtype: torch.dtype):
    case = lora_case([1] * 8, [16], (48, 24, 24), 40, dtype)
    together = case.y.clone()
    add_lora(together, case.x, case.a, case.b, case.slice_sizes, case.segments())
    for row, segment in enumerate(case.segments().segments):
        alone, x = case.y[row : row + 1].clone(), case.x[row : row + 1]
        only = LoRASegments.from_lists([0], [1], [segment.pages], 1, "cpu")
        add_lora(alone, x, case.a, case.b, case.slice_sizes, only)
        assert_close(alone, together[row : row + 1].double(), torch.float32)


def test_groups_follow_the_shape_of_the_work():
    def groups(mix: list[int], ranks: list[int]) -> list[tuple[int, int, int]]:
        found = lora_case(mix, ranks, (8,), 8).segments().groups
        return [(group.segments, group.rows.start, group.rows.stop) for group in found]

    assert groups([1] * 8, [16]) == [(8, 0, 8)]
    assert groups([1] * 12, [16]) == [(8, 0, 8), (4, 8, 12)]  # not too many pages
    assert groups([1] * 4, [64]) == [(2, 0, 2), (2, 2, 4)]
    assert groups([2, 2, 1, 1], [16]) == [(2, 0, 4), (2, 4, 6)]  # as many rows
    assert groups([1] * 4, [16, 16, 40, 40]) == [(2, 0, 2), (2, 2, 4)]  # as many pages
    assert groups([400] * 2, [16]) == [(1, 0, 400), (1, 400, 800)]
    assert groups([0, 5, 0], [16]) == [(1, 0, 5)]
    assert groups([], [16]) == []
    between = row_groups.row_groups([Segment(0, 1, (3,)), Segment(1, 1, ()), Segment(2, 1, (4,))])
    assert [group.rows for group in between] == [slice(0, 1), slice(2, 3)]
    near = row_groups.row_groups([Segment(i, 1, (3 + i,)) for i in range(3)])
    assert near[0].pages == slice(3, 6)
    far = row_groups.row_groups([Segment(i, 1, (3 - i,)) for i in range(3)])
    assert isinstance(far[0].pages, torch.Tensor) and far[0].pages.tolist() == [3, 2, 1]


def test_more_slices_than_the_gpu_kernel_takes_are_refused():
    case = lora_case([1], [16], (8, 8, 8, 8), 8)
    with pytest.raises(ValueError, match="4 slices"):
        expand_gpu(torch.empty(0), case.b, case.slice_sizes, case.segments(), case.y, True)


def test_a_cpu_needs_no_openai_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from support.kernels.cases import lora_case\n"
        "from multilora_kernels.lora import add_lora\n"
        "from multilora_kernels.shrink import shrink_gpu\n"
        "import multilora_kernels.rope_kv_write, multilora_kernels.paged_attention\n"
        "c = lora_case([2, 1], [16], (8,), 8)\n"
        "add_lora(c.y, c.x, c.a, c.b, c.slice_sizes, c.segments())\n"
        "try: shrink_gpu(c.x, c.a, c.segments())\n"
        "except ModuleNotFoundError as error: assert 'pip install triton' in str(error)\n"
        "else: raise AssertionError\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=120)
