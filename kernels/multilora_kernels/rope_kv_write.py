"""What lies between the projection of q, k, v and attention, in one launch.

    x = qkv[t] + Δ[t]                             what the adapters still have to add, if any
    x = x / sqrt(Σ_d x_d² / D + eps) · qk_norm            per head of q and k, where there is a norm
    y_d = x_d · cos_d - x_{d+D/2} · sin_d,   y_{d+D/2} = x_{d+D/2} · cos_d + x_d · sin_d,   d < D/2
    q[t] = y of the query heads,   k_cache, v_cache[slot] = y of the key heads, x of the value heads

slot = kv_slots[t]; -1 writes nothing (a row of padding). All sums in float32, rounded once. Floor:
T · (H + 2K) · D · itemsize bytes read (twice with Δ), as many written, and the rows of the RoPE
table once (2 · T · D · itemsize). Hence: a program owns one head of a tile of rows, so that one row
makes enough programs for a decode step; the two halves of a head are two tensors, so that the
rotation stays within a thread; heads run fastest over the grid, so that neighbours read
neighbouring bytes of qkv and the same rows of the RoPE table.
Sources: RoFormer (arXiv 2104.09864), QK norm (arXiv 2010.04245), PagedAttention
(arXiv 2309.06180).
"""

import torch
import torch.nn.functional as F

from multilora_kernels.kv_write import kv_write_cpu
from multilora_kernels.openai_triton import (
    early_launch,
    next_power_of_2,
    tl,
    triton,
    uses_kernels,
    wait_if_early,
)

_BLOCK_M = 16  # rows of a program


@triton.jit
def _norm(x1, x2, norm_tile, d_mask, eps, HEAD_DIM: tl.constexpr):
    """Both halves by their common root mean square, times the weight."""
    squares = tl.sum(x1 * x1, axis=1) + tl.sum(x2 * x2, axis=1)
    scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
    weight1 = tl.load(norm_tile, mask=d_mask, other=0.0).to(tl.float32)[None, :]
    weight2 = tl.load(norm_tile + HEAD_DIM // 2, mask=d_mask, other=0.0).to(tl.float32)[None, :]
    return x1 * scale * weight1, x2 * scale * weight2


@triton.jit
def _rotate(x1, x2, rope_ptr, rows, d, mask, HEAD_DIM: tl.constexpr):
    """By the first half of the cosines and the second, positive, half of the sines."""
    tile = rope_ptr + rows[:, None] * (2 * HEAD_DIM) + d[None, :]
    cos = tl.load(tile, mask=mask, other=0.0).to(tl.float32)
    sin = tl.load(tile + HEAD_DIM + HEAD_DIM // 2, mask=mask, other=0.0).to(tl.float32)
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


@triton.jit
def _store(
    y1, y2, q_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, rows, head, d, row_mask, mask, slot_stride,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """To q, or to the slots of the rows in the cache that the head belongs to."""
    if head < NUM_HEADS:
        tile = q_ptr + rows[:, None] * (NUM_HEADS * HEAD_DIM) + (head * HEAD_DIM + d)[None, :]
    else:
        slots = tl.load(slots_ptr + rows, mask=row_mask, other=-1)
        mask = mask & (slots >= 0)[:, None]
        head -= NUM_HEADS
        if head < NUM_KV_HEADS:
            tile = k_cache_ptr + slots[:, None] * slot_stride + (head * HEAD_DIM + d)[None, :]
        else:
            head -= NUM_KV_HEADS
            tile = v_cache_ptr + slots[:, None] * slot_stride + (head * HEAD_DIM + d)[None, :]
    tl.store(tile, y1.to(q_ptr.dtype.element_ty), mask=mask)
    tl.store(tile + HEAD_DIM // 2, y2.to(q_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows", "keep_kv"])
def rope_kv_write_kernel(
    qkv_ptr, delta_ptr, rope_ptr, slots_ptr, norm_ptr, q_ptr, k_cache_ptr, v_cache_ptr,
    eps, num_rows, qkv_stride, slot_stride, keep_kv,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    DELTA: tl.constexpr, NORM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Grid (heads of q, k and v, tiles of rows). BLOCK_D holds half a head."""
    head = tl.program_id(0)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    row_mask, d_mask = rows < num_rows, d < HEAD_DIM // 2
    rows = rows.to(tl.int64)
    mask = row_mask[:, None] & d_mask[None, :]
    columns = head * HEAD_DIM + d
    x_tile = qkv_ptr + rows[:, None] * qkv_stride + columns[None, :]
    wait_if_early(EARLY)
    x1 = tl.load(x_tile, mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(x_tile + HEAD_DIM // 2, mask=mask, other=0.0).to(tl.float32)
    if DELTA:
        width: tl.constexpr = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
        delta_tile = delta_ptr + rows[:, None] * width + columns[None, :]
        x1 += tl.load(delta_tile, mask=mask, other=0.0)
        x2 += tl.load(delta_tile + HEAD_DIM // 2, mask=mask, other=0.0)
    if head < NUM_HEADS + NUM_KV_HEADS:
        if NORM:
            x1, x2 = _norm(x1, x2, norm_ptr + columns, d_mask, eps, HEAD_DIM)
        x1, x2 = _rotate(x1, x2, rope_ptr, rows, d, mask, HEAD_DIM)
    if (keep_kv != 0) & (head >= NUM_HEADS):
        tl.store(x_tile, x1.to(qkv_ptr.dtype.element_ty), mask=mask)
        tl.store(x_tile + HEAD_DIM // 2, x2.to(qkv_ptr.dtype.element_ty), mask=mask)
    _store(
        x1, x2, q_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, rows, head, d, row_mask, mask,
        slot_stride, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM,
    )  # fmt: skip


def rope_kv_write_gpu(
    qkv: torch.Tensor,
    rope: torch.Tensor,
    kv_slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    qk_norm: torch.Tensor | None,
    eps: float,
    delta: torch.Tensor | None = None,
    keep_kv: bool = False,
) -> torch.Tensor:
    """See rope_kv_write."""
    rows, head_dim = len(qkv), k_cache.shape[3]
    q = torch.empty(rows, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    if not rows:
        return q
    rope_kv_write_kernel[(num_heads + 2 * num_kv_heads, -(-rows // _BLOCK_M))](
        qkv, delta, rope, kv_slots, qk_norm, q, k_cache, v_cache,
        eps, rows, qkv.stride(0), k_cache.stride(1), int(keep_kv),
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim,
        DELTA=delta is not None, NORM=qk_norm is not None,
        BLOCK_M=_BLOCK_M, BLOCK_D=next_power_of_2(head_dim // 2), num_warps=4, num_stages=1,
        **early_launch(qkv),
    )  # fmt: skip
    return q


def rope_kv_write_cpu(
    qkv: torch.Tensor,
    rope: torch.Tensor,
    kv_slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    qk_norm: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """See rope_kv_write; without an update, each operation rounded to the dtype. q is a view."""
    head_dim = k_cache.shape[3]
    heads = qkv.view(len(qkv), num_heads + 2 * num_kv_heads, head_dim)
    qk, v = heads.split((num_heads + num_kv_heads, num_kv_heads), dim=1)
    if qk_norm is not None:
        qk = F.rms_norm(qk, (head_dim,), eps=eps) * qk_norm
    cos, sin = rope.split(1, dim=1)
    qk = torch.addcmul(qk * cos, qk.roll(head_dim // 2, -1), sin)
    q, k = qk.split((num_heads, num_kv_heads), dim=1)
    kv_write_cpu(k, v, k_cache, v_cache, kv_slots)
    return q


def rope_kv_write(
    qkv: torch.Tensor,
    rope: torch.Tensor,
    kv_slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    qk_norm: torch.Tensor | None,
    eps: float,
    delta: torch.Tensor | None = None,
    keep_kv: bool = False,
) -> torch.Tensor:
    """q [T, H, D]; K and V of the rows are in the caches.

    qkv [T, (H + 2K) · D], columns adjacent, heads of q, k, v in that order; rope [T, 2, D]
    contiguous, row t holds (cos, cos) and (-sin, sin) of the position of row t; kv_slots int64 [T],
    distinct but for the -1 of padding; k_cache, v_cache [blocks, block_size, K, D] contiguous;
    qk_norm [H + K, D] contiguous, or None. One float dtype; D even. `delta` has the shape of qkv,
    contiguous, and is what expand gave; on a CPU add_lora has added it already. With
    `keep_kv` a GPU also writes K and V to their columns of `qkv`, where prefill attention finds
    them unpaged.
    """
    arguments = qkv, rope, kv_slots, k_cache, v_cache, num_heads, num_kv_heads, qk_norm, eps
    if uses_kernels(qkv):
        return rope_kv_write_gpu(*arguments, delta, keep_kv)
    if delta is not None:
        raise ValueError("a pending update needs the GPU kernels; a CPU adds it by add_lora")
    return rope_kv_write_cpu(*arguments)


def rope_kv_write_reference(
    qkv: torch.Tensor,
    rope: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    qk_norm: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float64 q [T, H, D], k and v [T, K, D], without an update."""
    heads = qkv.double().view(len(qkv), num_heads + 2 * num_kv_heads, rope.shape[-1])
    qk, v = heads.split((num_heads + num_kv_heads, num_kv_heads), dim=1)
    if qk_norm is not None:
        qk = qk / (qk.square().mean(-1, keepdim=True) + eps).sqrt() * qk_norm.double()
    x1, x2 = qk.chunk(2, dim=-1)
    cos, sin = rope[:, :1].double().chunk(2, -1)[0], rope[:, 1:].double().chunk(2, -1)[1]
    rotated = torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)
    q, k = rotated.split((num_heads, num_kv_heads), dim=1)
    return q, k, v
