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
@pytest.mark.parametrize("waste", [0, 10**9], ids=["loop", "dense"])
def test_all_ways_agree_and_base_rows_stay(
    slice_sizes: tuple[int, ...], spread: int, waste: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(row_groups, "_WASTE", waste)
    case = lora_case(MIXES["skewed"], [16, 40], slice_sizes, 33, spread=spread)
    want, before = expected(case), case.y.clone()
    segments = case.segments()
    assert len(segments.groups) == (1 if waste else len(case.row_counts))
    add_lora(case.y, case.x, case.a, case.b, slice_sizes, segments)
    assert_close(case.y, want, torch.float32)
    assert torch.equal(case.y[-3:], before[-3:])


def test_groups_follow_the_shape_of_the_work():
    def rows(mix: list[int], spread: int = 1) -> list[tuple[int, int]]:
        groups = lora_case(mix, [16], (8,), 8, spread=spread).segments().groups
        return [(group.rows.start, group.rows.stop) for group in groups]

    assert rows([1] * 16) == [(0, 16)]
    assert rows([400] * 2) == [(0, 400), (400, 800)]
    assert rows([1] * 8 + [128] + [1] * 8) == [(0, 8), (8, 136), (136, 144)]
    assert rows([0, 5, 0]) == [(0, 5)]
    assert rows([]) == []
    near, far = (lora_case([1] * 8, [16], (8,), 8, spread=s).segments().groups for s in (1, 100))
    assert isinstance(near[0].pages, slice)
    assert isinstance(far[0].pages, torch.Tensor)
    (alone,) = lora_case([9], [16], (8,), 8).segments().groups
    assert alone.mask is None


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
