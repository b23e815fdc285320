"""Matrix products. On a CPU without instructions for a 16-bit type they are done in float32.

PyTorch's own products of such a type go row by row there: measured on 2 cores with AVX2 in
bfloat16, ours are 2.5 times as fast at 32 rows and 4 to 6 times at 128, while below some 16 rows
those of PyTorch are faster; of two matrices that both lie in rows, 4 to 20 times from 8 rows on.
"""

import functools

import torch
import torch.nn.functional as F

_ROWS = 16  # from which on it pays to widen a weight for one product
_BLOCK = 1024  # rows of a weight that are widened at a time, so that they stay in the caches


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """y [T, out] = x [T, in] · weightᵀ + bias, with weight [out, in]; all of one dtype."""
    if len(x) < _ROWS or not _widens(x):
        return F.linear(x, weight, bias)
    y, wide = x.new_empty(len(x), len(weight)), x.float()
    for start in range(0, len(weight), _BLOCK):
        rows = slice(start, start + _BLOCK)
        part = None if bias is None else bias[rows].float()
        y[:, rows] = F.linear(wide, weight[rows].float(), part)
    return y


def add_product(y: torch.Tensor, x: torch.Tensor, matrix: torch.Tensor) -> None:
    """y [T, out] += x [T, in] · matrix [in, out]; all of one dtype."""
    if _widens(x):
        y += x.float() @ matrix.float()
    else:
        y.addmm_(x, matrix)


def _widens(x: torch.Tensor) -> bool:
    return x.dtype.itemsize == 2 and x.device.type == "cpu" and not _has_instructions(x.dtype)


@functools.cache
def _has_instructions(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies numbers of this 16-bit type, as oneDNN sees it."""
    name = "bf16" if dtype is torch.bfloat16 else "fp16"
    try:
        return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")())
    except (AttributeError, RuntimeError):  # a build without oneDNN, whose products are the same
        return True
