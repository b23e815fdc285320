"""Matrix products. On a CPU without instructions for a 16-bit type they are done in float32.

PyTorch's own products of such a type go row by row there: measured on 2 cores with AVX2 in
bfloat16, ours are 2.5 times as fast at 32 rows and 4 to 6 times at 128, while below some 16 rows
those of PyTorch are faster; of two matrices that both lie in rows, 4 to 20 times from 8 rows on.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

MANY_ROWS = 16  # from which on it pays to widen a weight for one product
_BLOCK = 1024  # rows of a weight that are widened at a time, so that they stay in the caches


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """y [T, out] = x [T, in] · weightᵀ + bias, with weight [out, in]; all of one dtype."""
    if len(x) < MANY_ROWS or not _widens(x):
        return F.linear(x, weight, bias)
    y, wide = x.new_empty(len(x), len(weight)), x.float()
    for start in range(0, len(weight), _BLOCK):
        rows = slice(start, start + _BLOCK)
        part = None if bias is None else bias[rows].float()
        y[:, rows] = F.linear(wide, weight[rows].float(), part)
    return y


def linear_each(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """y [S, R, out] = x [S, R, in] · weightᵀ of each of S weights [S, out, in]; float32 but for a
    single weight with many rows."""
    if _in_float32(x, weights):
        return torch.bmm(x.float(), weights.float().transpose(1, 2))
    return linear(x[0], weights[0]).unsqueeze(0)


def add_product_each(
    y: torch.Tensor, x: torch.Tensor, matrices: torch.Tensor, sizes: Sequence[int]
) -> None:
    """y [S, R, out] += x [slices, S, R, in] · matrix of each of S matrices [S, in, out], slice by
    slice of the columns, which have these sizes. x is what linear_each gave."""
    if _in_float32(y, matrices) or _widens(y):
        x, matrices = x.float(), matrices.float()
    for own_y, own_x, own in zip(y.split(sizes, 2), x, matrices.split(sizes, 2), strict=True):
        if own.dtype == y.dtype:
            own_y.baddbmm_(own_x, own)
        else:
            own_y += torch.bmm(own_x, own)


def _in_float32(rows: torch.Tensor, matrices: torch.Tensor) -> bool:
    """rows [S, R, width]; instructions for a 16-bit type are of no use to few."""
    return len(matrices) > 1 or rows.shape[1] < MANY_ROWS


def _widens(x: torch.Tensor) -> bool:
    return x.dtype.itemsize == 2 and x.device.type == "cpu" and not has_instructions(x.dtype)


@functools.cache
def has_instructions(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies numbers of this 16-bit type, as oneDNN sees it."""
    name = "bf16" if dtype is torch.bfloat16 else "fp16"
    try:
        return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")())
    except (AttributeError, RuntimeError):  # a build without oneDNN, whose products are the same
        return True
