"""What lies between the projection of q, k, v and attention, in one launch.

    x = qkv[t] + Δ[t]                                     the pending update of the adapters
    x = x / sqrt(Σ_d x_d² / D + eps) · qk_norm            per head of q and k, where there is a norm
    y_d = x_d · cos_d - x_{d+D/2} · sin_d,   y_{d+D/2} = x_{d+D/2} · cos_d + x_d · sin_d,   d < D/2
    q[t] = y of the query heads,   k_cache, v_cache[slot] = y of the key heads, x of the value heads

slot = kv_slots[t]; -1 writes nothing (a row of padding). Δ = h · B as in fused_update; all sums in
float32, rounded once. Floor: T · (H + 2K) · D · itemsize bytes read, as many written, the rows of
the RoPE table once (2 · T · D · itemsize), and with an update the pages in use once,
D_pages · 16 · (H + 2K) · D · itemsize. Hence: a program owns one head of a tile of rows, so that
one row makes enough programs for a decode step; the two halves of a head are two tensors, so that
the rotation stays within a thread; heads run fastest over the grid, so that neighbours read
neighbouring bytes of qkv and the same rows of the RoPE table.
Sources: RoFormer (arXiv 2104.09864), QK norm (arXiv 2010.04245), PagedAttention
(arXiv 2309.06180), Punica (arXiv 2310.18547).
"""

import torch
import torch.nn.functional as F

from multilora_kernels.fused_update import row_tile, two_deltas, update_launch
from multilora_kernels.lora import LoRAUpdate
from multilora_kernels.openai_triton import next_power_of_2, tl, triton, uses_kernels


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


@triton.jit(do_not_specialize=["num_rows"])
def rope_kv_write_kernel(
    qkv_ptr, rope_ptr, slots_ptr, norm_ptr, q_ptr, k_cache_ptr, v_cache_ptr,
    eps, qkv_stride, slot_stride,
    num_rows, h_ptr, b_ptr, tiles_ptr, pairs_ptr, b_page_stride, b_row_stride, h_plane_stride,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, NORM: tl.constexpr,
    LORA: tl.constexpr, RANKS: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid (heads of q, k and v, tiles of rows). BLOCK_D holds half a head."""
    head, tile = tl.program_id(0), tl.program_id(1)
    row_start, row_count, first, end = row_tile(tiles_ptr, tile, num_rows, LORA, BLOCK_M)
    if row_count == 0:
        return
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    rows = (row_start + m).to(tl.int64)
    row_mask, d_mask = m < row_count, d < HEAD_DIM // 2
    mask = row_mask[:, None] & d_mask[None, :]
    columns = head * HEAD_DIM + d
    x_tile = qkv_ptr + rows[:, None] * qkv_stride + columns[None, :]
    x1 = tl.load(x_tile, mask=mask, other=0.0)
    x2 = tl.load(x_tile + HEAD_DIM // 2, mask=mask, other=0.0)
    is_v = head >= NUM_HEADS + NUM_KV_HEADS
    if LORA:
        part = (head >= NUM_HEADS).to(tl.int32) + is_v.to(tl.int32)
        delta1, delta2 = two_deltas(
            h_ptr, b_ptr, pairs_ptr, first, end, m, row_count, part, part, columns,
            columns + HEAD_DIM // 2, d_mask, b_page_stride, b_row_stride, h_plane_stride,
            True, RANKS, SPLITS, BLOCK_M, BLOCK_D,
        )  # fmt: skip
        x1 += delta1
        x2 += delta2
    x1, x2 = x1.to(tl.float32), x2.to(tl.float32)
    if not is_v:
        if NORM:
            x1, x2 = _norm(x1, x2, norm_ptr + columns, d_mask, eps, HEAD_DIM)
        x1, x2 = _rotate(x1, x2, rope_ptr, rows, d, mask, HEAD_DIM)
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
    update: LoRAUpdate | None = None,
) -> torch.Tensor:
    """See rope_kv_write."""
    rows, head_dim = len(qkv), k_cache.shape[3]
    q = torch.empty(rows, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    if not rows:
        return q
    num_tiles, arguments, constants = update_launch(update, rows)
    block = max(16, next_power_of_2(head_dim // 2))
    rope_kv_write_kernel[(num_heads + 2 * num_kv_heads, num_tiles)](
        qkv, rope, kv_slots, qk_norm, q, k_cache, v_cache,
        eps, qkv.stride(0), k_cache.stride(1), *arguments,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim,
        NORM=qk_norm is not None, **constants, BLOCK_D=block,
        num_warps=8 if constants["BLOCK_M"] * block > 4096 else 4, num_stages=1,
    )  # fmt: skip
    return q


def kv_write_cpu(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    kv_slots: torch.Tensor,
) -> None:
    """k, v [T, K, D] into the caches."""
    if len(kv_slots) and int(kv_slots.min()) < 0:
        real = kv_slots >= 0
        k, v, kv_slots = k[real], v[real], kv_slots[real]
    k_cache.view(-1, *k_cache.shape[2:]).index_copy_(0, kv_slots, k)
    v_cache.view(-1, *v_cache.shape[2:]).index_copy_(0, kv_slots, v)


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
    update: LoRAUpdate | None = None,
) -> torch.Tensor:
    """q [T, H, D]; K and V of the rows are in the caches.

    qkv [T, (H + 2K) · D], columns adjacent, heads of q, k, v in that order; rope [T, 2, D]
    contiguous, row t holds (cos, cos) and (-sin, sin) of the position of row t; kv_slots int64 [T],
    distinct but for the -1 of padding; k_cache, v_cache [blocks, block_size, K, D] contiguous;
    qk_norm [H + K, D] contiguous, or None. One float dtype; D even. `update` is what shrink gave
    for the projection's input; on a CPU add_lora has added it already.
    """
    arguments = qkv, rope, kv_slots, k_cache, v_cache, num_heads, num_kv_heads, qk_norm, eps
    if uses_kernels(qkv):
        return rope_kv_write_gpu(*arguments, update)
    if update is not None:
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
