"""SwiGLU with the pending update of the adapters: the two halves of a projection become one.

    y[t, c] = silu(g) · u,    g = gate_up[t, c] + Δ[t, c],    u = gate_up[t, I + c] + Δ[t, I + c]

silu(g) = g / (1 + e^-g). gate_up [T, 2·I], columns adjacent → y [T, I], one float dtype, computed
in float32. Δ = h · B is what the expand would have added (see fused_update): adding it here saves a
read and a write of gate_up and a launch. Floor: 3 · T · I · itemsize bytes, and with an update the
pages in use once, D · 16 · 2·I · itemsize for D pages. Hence: a program owns a tile of rows of one
adapter and a run of columns in both halves. At decode the pages are what costs (rows that a tile
lacks are not loaded), 128 columns of both halves are 8 KB in flight per program; a handful of tiles
gets narrow runs, so that all multiprocessors have work, and so do tall tiles, whose two sums would
fill the registers.
Sources: GLU variants (arXiv 2002.05202), Punica (arXiv 2310.18547).
"""

import torch
import torch.nn.functional as F

from multilora_kernels.fused_update import row_tile, two_deltas, update_launch
from multilora_kernels.lora import LoRAUpdate
from multilora_kernels.openai_triton import num_programs, tl, triton, uses_kernels
from multilora_kernels.segments import DECODE_TILE

_BLOCK_N = 128  # columns of a program in each half
_NARROW_BLOCK_N = 64


@triton.jit(do_not_specialize=["num_rows"])
def swiglu_kernel(
    x_ptr, y_ptr, width, x_stride, y_stride,
    num_rows, h_ptr, b_ptr, tiles_ptr, pairs_ptr, b_page_stride, b_row_stride, h_plane_stride,
    LORA: tl.constexpr, RANKS: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (column blocks, tiles of rows)."""
    row_start, row_count, first, end = row_tile(
        tiles_ptr, tl.program_id(1), num_rows, LORA, BLOCK_M
    )
    if row_count == 0:
        return
    m = tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = (row_start + m).to(tl.int64)
    mask = (m < row_count)[:, None] & (columns < width)[None, :]
    x_tile = x_ptr + rows[:, None] * x_stride + columns[None, :]
    gate = tl.load(x_tile, mask=mask, other=0.0)
    up = tl.load(x_tile + width, mask=mask, other=0.0)
    if LORA:
        delta_gate, delta_up = two_deltas(
            h_ptr, b_ptr, pairs_ptr, first, end, m, row_count, 0, 1, columns, width + columns,
            columns < width, b_page_stride, b_row_stride, h_plane_stride,
            False, RANKS, SPLITS, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        gate += delta_gate
        up += delta_up
    gate = gate.to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    y_tile = y_ptr + rows[:, None] * y_stride + columns[None, :]
    tl.store(y_tile, y.to(y_ptr.dtype.element_ty), mask=mask)


def swiglu_gpu(gate_up: torch.Tensor, update: LoRAUpdate | None = None) -> torch.Tensor:
    """See swiglu."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    if not rows:
        return y
    num_tiles, arguments, constants = update_launch(update, rows)
    few = num_tiles * -(-width // _BLOCK_N) < num_programs(gate_up, 2)
    tall = constants["BLOCK_M"] > DECODE_TILE
    block = _NARROW_BLOCK_N if few or tall else _BLOCK_N
    swiglu_kernel[(-(-width // block), num_tiles)](
        gate_up, y, width, gate_up.stride(0), y.stride(0), *arguments,
        **constants, BLOCK_N=block, num_warps=8 if tall else 4, num_stages=1,
    )  # fmt: skip
    return y


def swiglu_cpu(gate_up: torch.Tensor) -> torch.Tensor:
    """See swiglu; without an update."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu(gate_up: torch.Tensor, update: LoRAUpdate | None = None) -> torch.Tensor:
    """gate_up [T, 2·I] → [T, I]. `update` is what shrink gave for the projection's input; on a CPU
    add_lora has added it already."""
    if uses_kernels(gate_up):
        return swiglu_gpu(gate_up, update)
    if update is not None:
        raise ValueError("a pending update needs the GPU kernels; a CPU adds it by add_lora")
    return swiglu_cpu(gate_up)


def swiglu_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """float64 [T, I], without an update."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return gate / (1 + (-gate).exp()) * up
