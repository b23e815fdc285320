"""RMS norm: each row divided by its root mean square, times a weight.

    x[t, c] += delta[t, c]                                    where an update is still to be added
    y[t, c] = x[t, c] / sqrt(Σ_c x[t, c]² / H + eps) · weight[c]

x [T, H], columns adjacent, weight [H], eps > 0 → y [T, H]; one float dtype, but the weight may be
float32; computed in float32 and rounded once, as F.rms_norm does. Floor: 2 · T · H · itemsize
bytes, x read and y written once (the weight stays in the cache), and twice that with a delta. Hence
one program per row, which holds the whole row in registers between the sum and the product, with
enough warps that a thread holds at most 32 elements.
Source: Root Mean Square Layer Normalization (arXiv 1910.07467).
"""

import torch
import torch.nn.functional as F

from multilora_kernels.openai_triton import (
    early_launch,
    next_power_of_2,
    tl,
    triton,
    uses_kernels,
    wait_if_early,
)

_PER_WARP = 512  # two loads of 16 bytes per thread
_MAX_WARPS = 32


@triton.jit
def rms_norm_kernel(
    x_ptr, delta_ptr, weight_ptr, y_ptr, x_stride, y_stride, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, DELTA: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid (rows). BLOCK is the power of two that holds WIDTH."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    wait_if_early(EARLY)
    x_row = x_ptr + row * x_stride + column
    x = tl.load(x_row, mask=mask, other=0.0)
    if DELTA:
        x += tl.load(delta_ptr + row * WIDTH + column, mask=mask, other=0.0)
        tl.store(x_row, x, mask=mask)
    x = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + eps)
    y = (x * scale * weight).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row * y_stride + column, y, mask=mask)


def rms_norm_gpu(
    x: torch.Tensor, weight: torch.Tensor, eps: float, delta: torch.Tensor | None = None
) -> torch.Tensor:
    """See rms_norm."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, width = x.shape
    if not rows:
        return y
    block = next_power_of_2(width)
    rms_norm_kernel[(rows,)](
        x, delta, weight, y, x.stride(0), y.stride(0), eps,
        WIDTH=width, BLOCK=block, DELTA=delta is not None,
        num_warps=min(max(block // _PER_WARP, 1), _MAX_WARPS), **early_launch(x),
    )  # fmt: skip
    return y


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, delta: torch.Tensor | None = None
) -> torch.Tensor:
    """x [T, H] normalised and times weight [H]. The rows of x may lie apart. `delta` [T, H],
    contiguous, is added to x first, in place."""
    if uses_kernels(x):
        return rms_norm_gpu(x, weight, eps, delta)
    if delta is not None:
        x += delta
    if weight.dtype != x.dtype:
        return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)
    return F.rms_norm(x, weight.shape, weight, eps)


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """float64 [T, H]."""
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
