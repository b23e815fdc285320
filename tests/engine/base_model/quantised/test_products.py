"""Every form of product against the matrix that it stands for, and quantising itself."""

import pytest
import torch

from multilora.base_model.quantised import products
from multilora.base_model.quantised.matrix import QuantisedMatrix, join, quantise
from multilora.base_model.quantised.products import ExpandedWeight, Fp8Weight, quantised_weight


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("target", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [None, random(48, seed=1)], ids=["without bias", "with bias"])
def test_a_product_is_that_of_the_matrix(
    target: str, dtype: torch.dtype, bias: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own in bfloat16, part after part else."""
    monkeypatch.setattr(products, "_BLOCK_BYTES", 192 * 4 * 10)  # the last part is smaller
    matrix = quantise(random(48, 192).to(dtype), target)
    assert matrix
    weight = quantised_weight(matrix, None if bias is None else bias.to(dtype), dtype)
    assert isinstance(weight, ExpandedWeight) == (dtype != torch.bfloat16)
    w = matrix.dequantised(torch.float32)
    relative, absolute = (1e-4, 1e-4) if dtype == torch.float32 else (0.02, 0.2)

    def assert_near(y: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(y.float(), expected, rtol=relative, atol=absolute)

    for rows in (1, 3, 40):
        x, residual = random(rows, 192, seed=rows).to(dtype), random(rows, 48, seed=9).to(dtype)
        expected = x.float() @ w.T + (0 if bias is None else bias)
        assert_near(weight.multiply(x), expected)
        assert_near(weight.multiply(x.T.contiguous().T), expected)
        sum_ = residual.float() + expected
        weight.add_to(residual, x)
        assert_near(residual, sum_)


def test_fp8_with_a_scale_for_each_row_of_x() -> None:
    """On a CPU it is never chosen, but PyTorch computes it there, too."""
    matrix, bias, x = quantise(random(48, 192), "fp8"), random(48, seed=1), random(5, 192, seed=2)
    assert matrix
    x *= torch.tensor([[1e-3], [1.0], [1e3], [0.0], [5.0]])
    weight = Fp8Weight("fp8", matrix.codes, matrix.scales.T.contiguous(), bias)
    error = weight.multiply(x) - (x @ matrix.dequantised(torch.float32).T + bias)
    typical = x.norm(dim=1) + 0.1  # numbers of a row of y, as W's are about 1
    assert (error.abs().amax(1) <= 0.15 * typical).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_that_are_large_and_columns_in_another_order(dtype: torch.dtype) -> None:
    codes = torch.randint(-8, 8, (16, 384), generator=torch.Generator().manual_seed(0))
    scales, offsets = random(16, 2).abs().to(dtype).float(), random(16, 2, seed=2).to(dtype).float()
    order = torch.randperm(384, generator=torch.Generator().manual_seed(3))
    matrix = QuantisedMatrix(codes.to(torch.int8), scales, offsets, 192, order, bits=4)
    w = torch.empty(16, 384)
    spread = (part.repeat_interleave(192, 1) for part in (scales, offsets))
    w[:, order] = codes * next(spread) + next(spread)
    torch.testing.assert_close(matrix.dequantised(torch.float32), w)
    x, weight = random(5, 384).to(dtype), quantised_weight(matrix, None, dtype)
    tolerance = 1e-3 if dtype == torch.float32 else 1.0
    torch.testing.assert_close(
        weight.multiply(x).float(), x.float() @ w.T, rtol=0.01, atol=tolerance
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_rows_with_columns_in_another_order(dtype: torch.dtype) -> None:
    plain = quantise(random(16, 64).to(dtype), "int8")
    assert plain
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    matrix = QuantisedMatrix(plain.codes, plain.scales, None, 64, order)
    w = torch.empty(16, 64)
    w[:, order] = plain.codes * plain.scales
    x, weight = random(5, 64).to(dtype), quantised_weight(matrix, None, dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(
        weight.multiply(x).float(), x.float() @ w.T, rtol=0.01, atol=tolerance
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", ["int8", "int4", "fp8"])
def test_quantising_takes_the_nearest_step(target: str, dtype: torch.dtype) -> None:
    w = random(8, 96).to(dtype)
    w[3] = 0
    matrix = quantise(w, target)
    assert matrix
    error = (matrix.dequantised(torch.float32) - w.float()).abs()
    if target == "fp8":
        assert (error <= w.float().abs() / 16 + 1e-5).all()
    else:
        step = matrix.scales.repeat_interleave(matrix.group, 1)
        assert (error <= step * (0.51 if dtype == torch.float32 else 0.6)).all()
    assert error[3].max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_any_length(dtype: torch.dtype) -> None:
    """PyTorch's product of bfloat16 takes only multiples of 32, and does not say so."""
    matrix = quantise(random(16, 40).to(dtype), "int8")
    assert matrix
    weight = quantised_weight(matrix, None, dtype)
    assert isinstance(weight, ExpandedWeight)
    x, w = random(5, 40).to(dtype), matrix.dequantised(torch.float32)
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(
        weight.multiply(x).float(), x.float() @ w.T, rtol=0.01, atol=tolerance
    )


def test_rows_below_each_other_keep_their_own_offsets() -> None:
    """Also where only some have any."""
    codes, scales = torch.ones(2, 32, dtype=torch.int8), torch.ones(2, 1)
    plain = QuantisedMatrix(codes, scales, None, 32, bits=4)
    shifted = QuantisedMatrix(codes, scales, torch.full((2, 1), 5.0), 32, bits=4)
    for parts, meant in (([plain, shifted], [1, 1, 6, 6]), ([shifted, plain], [6, 6, 1, 1])):
        joined = join(parts)
        assert joined and joined.dequantised(torch.float32)[:, 0].tolist() == meant
    both = join([plain, plain])
    assert both and both.offsets is None


def test_what_no_product_takes_is_said() -> None:
    parts = QuantisedMatrix(torch.zeros(16, 64, dtype=torch.int8), torch.ones(16, 2), None, 32)
    with pytest.raises(RuntimeError, match="8 bits with scales of parts of a row"):
        quantised_weight(parts, None, torch.float32)
    odd = QuantisedMatrix(
        torch.zeros(16, 64, dtype=torch.int8), torch.ones(16, 4), None, 16, bits=4
    )
    with pytest.raises(RuntimeError, match="int4 with scales of 16 columns"):
        quantised_weight(odd, None, torch.float32)
    assert quantise(random(4, 40), "int4") is None
