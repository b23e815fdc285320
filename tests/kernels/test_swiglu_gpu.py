"""The GPU kernels of RMS norm and SwiGLU: on a GPU, or interpreted (see test_interpreter)."""

import pytest
import torch

from multilora_kernels.lora import expand
from multilora_kernels.rms_norm import rms_norm, rms_norm_reference
from multilora_kernels.segments import LaunchBounds
from multilora_kernels.swiglu import swiglu, swiglu_reference
from support.kernels.cases import DEVICE, DTYPES, INTERPRETED, assert_close, needs_gpu
from support.kernels.consumers import MIXES, NAN, consumer_case, fill_new_memory

pytestmark = needs_gpu
WIDTHS = [72, 130] if INTERPRETED else [72, 130, 14336]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 48, 576, *([] if INTERPRETED else [4096, 16384])])
def test_rms_norm(width: int, dtype: torch.dtype):
    """Rows of very different sizes, of a wider tensor; eps matters for the smallest."""
    rows = torch.randn(5, 3, width, generator=torch.Generator().manual_seed(0))[:, 1]
    rows *= torch.tensor([1.0, 0.003, 100.0, 0.0, 1.0])[:, None]
    x = rows.to(DEVICE, dtype)
    weight = torch.linspace(-2, 3, width).to(DEVICE, dtype)
    y = rms_norm(x, weight, 1e-5)
    assert y.is_contiguous()
    for row in range(5):
        expected = rms_norm_reference(x[row : row + 1], weight, 1e-5)
        assert_close(y[row : row + 1], expected, dtype)


def test_rms_norm_of_no_rows():
    assert rms_norm(torch.ones(0, 8, device=DEVICE), torch.ones(8, device=DEVICE), 1.0).numel() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 16, 37])
@pytest.mark.parametrize("width", WIDTHS)
def test_swiglu_without_an_update(width: int, rows: int, dtype: torch.dtype):
    wide = torch.randn(rows, 2 * width + 16, device=DEVICE).to(dtype) * 4
    wide[:, 2 * width :] = NAN
    gate_up = wide[:, : 2 * width]
    assert_close(swiglu(gate_up), swiglu_reference(gate_up), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("mix", MIXES.values(), ids=list(MIXES))
def test_swiglu_with_an_update(
    mix: tuple[list[int], int], width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    fill_new_memory(monkeypatch)
    case = consumer_case(mix, (width, width), dtype, DEVICE)
    fused = swiglu(case.y, case.update)
    assert_close(fused, swiglu_reference(case.exact), dtype)
    before = case.y.clone()
    expand(case.update, case.y)
    assert mix[0] == [] or not torch.equal(case.y, before)
    assert_close(fused, swiglu(case.y).double(), dtype)


def test_swiglu_over_tables_for_more_than_the_batch(monkeypatch: pytest.MonkeyPatch):
    fill_new_memory(monkeypatch)
    dtype = DTYPES[0]
    cases = [
        consumer_case(MIXES["distinct"], (72, 72), dtype, DEVICE, bounds)
        for bounds in (None, LaunchBounds(tiles=9, pairs=12))
    ]
    assert len(cases[1].update.segments.tiles) == 9
    assert torch.equal(*(swiglu(case.y, case.update) for case in cases))


def test_a_wide_launch_and_a_narrow_one_are_the_same():
    """Few tiles get narrow column blocks."""
    width = 300 if INTERPRETED else 14336
    gate_up = torch.randn(80, 2 * width, device=DEVICE).to(DTYPES[0])
    together = swiglu(gate_up)
    assert torch.equal(together, torch.cat([swiglu(rows) for rows in gate_up.split(16)]))
