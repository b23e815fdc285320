"""The GPU kernels of RMS norm and SwiGLU: on a GPU, or interpreted (see test_interpreter)."""

import pytest
import torch

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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [48, *([] if INTERPRETED else [4096])])
def test_rms_norm_adds_what_is_still_to_be_added(width: int, dtype: torch.dtype):
    """To the rows of a wider tensor, in place, and to nothing between them."""
    wide = torch.randn(5, 3, width, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    x, others, weight = wide[:, 1], wide[:, ::2].clone(), torch.linspace(-2, 3, width)
    delta = torch.linspace(1, 2, 5 * width).view(5, width).to(DEVICE, dtype)
    weight, right = weight.to(DEVICE, dtype), x.double() + delta.double()
    y = rms_norm(x, weight, 1e-5, delta)
    assert_close(x, right, dtype)
    assert_close(y, rms_norm_reference(x, weight, 1e-5), dtype)
    assert torch.equal(wide[:, ::2], others)


def test_rms_norm_with_a_weight_in_float32():
    """As Gemma's, near 1, where halves lose what makes the difference."""
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(2)).to(DEVICE, torch.float16)
    weight = 1 + torch.linspace(-1, 1, 48, device=DEVICE) / 4096
    y = rms_norm(x, weight, 1e-5)
    assert y.dtype == x.dtype
    assert_close(y, rms_norm_reference(x, weight, 1e-5), x.dtype)


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
    exact = swiglu_reference(case.exact)
    assert_close(swiglu(case.y, delta=case.delta), exact, dtype)
    assert_close(swiglu(case.y, update=case.update), exact, dtype)


def test_swiglu_over_tables_for_more_than_the_batch(monkeypatch: pytest.MonkeyPatch):
    fill_new_memory(monkeypatch)
    dtype = DTYPES[0]
    cases = [
        consumer_case(MIXES["distinct"], (72, 72), dtype, DEVICE, bounds)
        for bounds in (None, LaunchBounds(tiles=9, pairs=12))
    ]
    assert len(cases[1].update.segments.tiles) == 9
    assert torch.equal(*(swiglu(case.y, update=case.update) for case in cases))
    assert torch.equal(cases[0].delta, cases[1].delta)
