"""Products of a quantised weight with rows, as PyTorch has them: y = x Wᵀ + bias.

x [T, K], y [T, N], both of the engine's dtype. The forms have the methods of DenseWeight.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from multilora.base_model.quantised.matrix import FP8, MAX_FP8, QuantisedMatrix, quantise
from multilora.errors import StartupError, first_line

_ATEN = torch.ops.aten
_GROUPS = (256, 128, 64, 32)  # columns of one scale that the int4 products know
_BLOCK_BYTES = 16 << 20  # of a dequantised part of a matrix on a CPU


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """What the forms share."""

    form: str  # "int8": how the codes are kept
    codes: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None  # [N]

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        y = self.product(x)
        return y if self.bias is None else y.add_(self.bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        residual += self.multiply(x)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x Wᵀ."""
        raise NotImplementedError

    @property
    def num_bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


@dataclass(frozen=True, eq=False)
class Int8Weight(QuantisedWeight):
    """On a CPU in bfloat16. codes int8 [N, K], scales bfloat16 [N].

    PyTorch's product is vectorised for this dtype alone. Measured on 2 cores with AVX2, 2048 x
    2048, for 4 and 256 rows: 0.4 and 31 ms, where the bfloat16 matrix takes 1.7 and 26. In float32
    the product takes 24 and 1586 ms, and so is not used.
    """

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return _ATEN._weight_int8pack_mm(x.contiguous(), self.codes, self.scales)


@dataclass(frozen=True, eq=False)
class Int4Weight(QuantisedWeight):
    """On a CPU in bfloat16; on a GPU, which computes in bfloat16 whatever the engine's dtype is.

    codes: two a byte, in the order of the product; scales bfloat16 [G, N, 2]: scale and offset of
    each group."""

    group: int
    order: torch.Tensor | None  # [K]: where column j of the codes is in x

    def product(self, x: torch.Tensor) -> torch.Tensor:
        if self.order is not None:
            x = x.index_select(1, self.order)
        rows = x.to(torch.bfloat16).contiguous()
        if x.is_cuda:
            y = _ATEN._weight_int4pack_mm(rows, self.codes, self.group, self.scales)
        else:
            y = _ATEN._weight_int4pack_mm_for_cpu(rows, self.codes, self.group, self.scales)
        return y.to(x.dtype)


@dataclass(frozen=True, eq=False)
class ExpandedWeight(QuantisedWeight):
    """Where there is no product: part after part of the matrix is dequantised for every product.
    It saves memory, not time: on that CPU such a matrix in float32 takes 3 to 8 ms more than the
    packed one (0.5 and 14 ms for 4 and 256 rows), and int4 as much as int8.

    codes int8 [N, K], or uint8 [N, K / 2] with column k in the low and k + K / 2 in the high bits;
    scales [2, N, G]: scale and offset of each group, of the engine's dtype.
    """

    group: int
    order: torch.Tensor | None  # as of Int4Weight

    def product(self, x: torch.Tensor) -> torch.Tensor:
        if self.order is not None:
            x = x.index_select(1, self.order)
        size = len(self.codes)
        if not x.is_cuda:
            size = max(1, _BLOCK_BYTES // (x.shape[1] * x.element_size()))
        if size >= len(self.codes):
            return F.linear(x, self._rows(slice(None), x))
        y = x.new_empty(len(x), len(self.codes))
        for start in range(0, len(self.codes), size):
            rows = slice(start, start + size)
            y[:, rows] = F.linear(x, self._rows(rows, x))
        return y

    def _rows(self, rows: slice, x: torch.Tensor) -> torch.Tensor:
        """These rows of W, columns as in the codes."""
        codes, (scales, offsets) = self.codes[rows], self.scales[:, rows]
        if codes.dtype == torch.int8:  # with one scale for a row, and no offset
            # A CPU is slow where it multiplies numbers of two kinds.
            return codes * scales if x.is_cuda else codes.to(x.dtype).mul_(scales)
        w = x.new_empty(len(codes), x.shape[1])
        low, high = w.tensor_split(2, dim=1)
        low.copy_(codes & 15)
        high.copy_(codes >> 4)
        w.unflatten(1, (-1, self.group)).mul_(scales[..., None]).add_(offsets[..., None])
        return w


@dataclass(frozen=True, eq=False)
class Fp8Weight(QuantisedWeight):
    """codes float8_e4m3fn [N, K], scales float32 [1, N]. Each row of x is brought to eight bits
    with a scale of its own."""

    def product(self, x: torch.Tensor) -> torch.Tensor:
        scales = x.abs().amax(1, keepdim=True).float().clamp_(min=1e-12).div_(MAX_FP8)
        rows = (x / scales).clamp_(-MAX_FP8, MAX_FP8).to(FP8)
        y = _ATEN._scaled_mm(
            rows,
            self.codes.T,
            scale_a=scales,
            scale_b=self.scales,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return y.to(x.dtype)


def quantised_weight(
    matrix: QuantisedMatrix, bias: torch.Tensor | None, dtype: torch.dtype
) -> QuantisedWeight:
    """The form in which the matrix's device multiplies rows of `dtype` with it; RuntimeError, with
    the reason, where it cannot."""
    device, columns = matrix.codes.device, matrix.codes.shape[1]
    weight = _form(matrix, bias, dtype)
    weight.multiply(torch.zeros(1, columns, dtype=dtype, device=device))  # whether it can
    return weight


def _form(
    matrix: QuantisedMatrix, bias: torch.Tensor | None, dtype: torch.dtype
) -> QuantisedWeight:
    columns, on_gpu = matrix.codes.shape[1], matrix.codes.is_cuda
    if matrix.bits == 4:
        group = next((size for size in _GROUPS if matrix.group % size == 0), None)
        if group is None or columns % group:
            raise RuntimeError(f"there is no product of int4 with scales of {matrix.group} columns")
        if on_gpu or dtype == torch.bfloat16:
            return _int4(matrix, bias, group)
        return _expanded(matrix, bias, dtype, group)
    if matrix.scales.shape[1] > 1 or matrix.offsets is not None:
        raise RuntimeError("there is no product of 8 bits with scales of parts of a row")
    if matrix.codes.dtype == FP8:
        if not on_gpu:
            raise RuntimeError("it needs a GPU of compute capability 8.9 or newer")
        return Fp8Weight("fp8", matrix.codes, matrix.scales.T.contiguous(), bias)
    if on_gpu or dtype != torch.bfloat16 or columns % 32:  # which the product does not ask
        return _expanded(matrix, bias, dtype, columns)
    codes = matrix.codes  # with one scale for a row, columns may have any order
    if matrix.order is not None:
        codes = torch.empty_like(codes).index_copy_(1, matrix.order, codes)
    return Int8Weight("int8", codes, matrix.scales[:, 0].to(dtype).contiguous(), bias)


def _expanded(
    matrix: QuantisedMatrix, bias: torch.Tensor | None, dtype: torch.dtype, group: int
) -> QuantisedWeight:
    scales, offsets = _of_groups(matrix, group)
    codes = matrix.codes
    if matrix.bits == 4:
        low, high = (codes + 8).view(torch.uint8).tensor_split(2, dim=1)
        codes, offsets = low | (high << 4), offsets - 8 * scales
    both = torch.stack((scales, offsets)).to(dtype)
    return ExpandedWeight(f"int{matrix.bits}", codes, both, bias, group, matrix.order)


def _int4(matrix: QuantisedMatrix, bias: torch.Tensor | None, group: int) -> QuantisedWeight:
    columns, codes = matrix.codes.shape[1], matrix.codes + 8
    if matrix.codes.is_cuda:
        codes = ((codes[:, ::2] << 4) | codes[:, 1::2]).view(torch.uint8)
        tiles = next(count for count in (8, 4, 2) if columns % (16 * count) == 0)
        packed = _ATEN._convert_weight_to_int4pack(codes, tiles)
    else:
        packed = _ATEN._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    scales = torch.stack(_of_groups(matrix, group), 2).transpose(0, 1)
    scales = scales.to(torch.bfloat16).contiguous()
    return Int4Weight("int4", packed, scales, bias, group, matrix.order)


def _of_groups(matrix: QuantisedMatrix, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and offsets [N, K / group]; `group` divides K and the matrix's own."""
    count, times = matrix.codes.shape[1] // group, matrix.group // group
    offsets = torch.zeros_like(matrix.scales) if matrix.offsets is None else matrix.offsets
    scales, offsets = (
        part.repeat_interleave(times, 1)[:, :count] for part in (matrix.scales, offsets)
    )
    return scales, offsets


def check_target(target: str, dtype: torch.dtype, device: torch.device) -> None:
    """StartupError where weights that are quantised to `target` cannot be computed with."""
    matrix = quantise(torch.zeros(128, 128, dtype=dtype, device=device), target)
    assert matrix
    try:
        quantised_weight(matrix, None, dtype)
    except RuntimeError as error:
        others = " or ".join(other for other in ("int8", "int4") if other != target)
        raise StartupError(
            f"--quantize {target} cannot be computed on {device.type} as {dtype} "
            f"({first_line(error)}); choose {others}, or leave the flag out"
        ) from None
