"""Products of 16-bit numbers, on a processor that has instructions for them and on one without."""

from collections.abc import Callable

import pytest
import torch

from multilora_kernels import products
from multilora_kernels.products import add_product_each, linear, linear_each

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture(params=[True, False], ids=["instructions", "no instructions"])
def has(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(products, "has_instructions", lambda _: request.param)
    return request.param


def numbers(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def assert_rounded(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal, but for the last digits of the dtype."""
    step = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=2 * step, atol=50 * step)


@pytest.mark.usefixtures("has")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 15, 16, 40])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear(rows: int, dtype: torch.dtype, has_bias: bool) -> None:
    x, weight = numbers(dtype, rows, 24), numbers(dtype, 2060, 24)
    bias = numbers(dtype, 2060) if has_bias else None
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert_rounded(linear(x, weight, bias), expected)


@pytest.mark.usefixtures("has")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("count", [1, 5])
def test_a_weight_for_each(count: int, rows: int, dtype: torch.dtype) -> None:
    x, weights = numbers(dtype, count, rows, 24), numbers(dtype, count, 32, 24)
    found = linear_each(x, weights)
    assert_rounded(found, x.double() @ weights.double().mT)
    assert found.dtype == (dtype if (count, rows) == (1, 40) else torch.float32)


@pytest.mark.usefixtures("has")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("count", [1, 5])
def test_a_matrix_for_each_is_added_slice_by_slice(
    count: int, rows: int, dtype: torch.dtype
) -> None:
    """To rows of a larger tensor."""
    whole, x = numbers(dtype, count * rows + 2, 30), numbers(dtype, 2, count, rows, 32)
    matrices, expected = numbers(dtype, count, 32, 30), whole.double()
    part = expected[2:].view(count, rows, 30)
    part[..., :10] += x[0].double() @ matrices[..., :10].double()
    part[..., 10:] += x[1].double() @ matrices[..., 10:].double()
    x = x if (count, rows) == (1, 40) else x.float()  # as linear_each gives it
    add_product_each(whole[2:].unflatten(0, (count, rows)), x, matrices, (10, 20))
    assert_rounded(whole, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_what_has_no_instructions_is_widened(
    has: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    widened: list[torch.Size] = []
    widen: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.float

    def note(tensor: torch.Tensor) -> torch.Tensor:
        widened.append(tensor.shape)
        return widen(tensor)

    monkeypatch.setattr(torch.Tensor, "float", note)
    linear(numbers(dtype, 15, 8), numbers(dtype, 1030, 8))
    assert not widened  # a row at a time is faster for few
    linear(numbers(dtype, 16, 8), numbers(dtype, 1030, 8))
    expected = [(16, 8), (1024, 8), (6, 8)] if not has and dtype.itemsize == 2 else []
    assert widened == [torch.Size(shape) for shape in expected]


def test_what_this_processor_has() -> None:
    """As PyTorch says."""
    products.has_instructions.cache_clear()
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert products.has_instructions(torch.bfloat16) == supported
