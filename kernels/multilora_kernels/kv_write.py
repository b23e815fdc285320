"""K and V of new tokens into the cache, where nothing else is left to do with them.

    k_cache, v_cache[slot] = k[t], v[t]            slot = kv_slots[t]; -1 writes nothing (padding)

rope_kv_write does it for heads that it has just rotated. Floor: 2 · T · K · (D + V) · itemsize
bytes, each read and written once. Hence a program owns one head of a tile of rows, of K and of V;
heads run fastest over the grid, so that neighbours write neighbouring bytes of a slot.
Source: PagedAttention (arXiv 2309.06180).
"""

import torch

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
def _copy(
    x_ptr, cache_ptr, rows, slots, mask, head, row_stride, head_stride, slot_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, BLOCK)
    mask = mask[:, None] & (d < WIDTH)[None, :]
    x = tl.load(x_ptr + rows[:, None] * row_stride + (head * head_stride + d)[None, :], mask=mask)
    to = cache_ptr + slots[:, None] * slot_stride + (head * WIDTH + d)[None, :]
    tl.store(to, x, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def kv_write_kernel(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, num_rows,
    k_row, k_head, v_row, v_head, k_slot, v_slot,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid (KV heads, tiles of rows)."""
    head = tl.program_id(0)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    wait_if_early(EARLY)
    slots = tl.load(slots_ptr + rows, mask=rows < num_rows, other=-1)
    rows, mask = rows.to(tl.int64), slots >= 0
    _copy(k_ptr, k_cache_ptr, rows, slots, mask, head, k_row, k_head, k_slot, HEAD_DIM, BLOCK_D)
    _copy(v_ptr, v_cache_ptr, rows, slots, mask, head, v_row, v_head, v_slot, VALUE_DIM, BLOCK_V)


def kv_write_gpu(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    kv_slots: torch.Tensor,
) -> None:
    """See kv_write."""
    rows, heads, head_dim = k.shape
    if not rows:
        return
    kv_write_kernel[(heads, -(-rows // _BLOCK_M))](
        k, v, k_cache, v_cache, kv_slots, rows, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        k_cache.stride(1), v_cache.stride(1), HEAD_DIM=head_dim, VALUE_DIM=v.shape[2],
        BLOCK_M=_BLOCK_M, BLOCK_D=next_power_of_2(head_dim), BLOCK_V=next_power_of_2(v.shape[2]),
        num_warps=4, num_stages=1, **early_launch(k),
    )  # fmt: skip


def kv_write_cpu(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    kv_slots: torch.Tensor,
) -> None:
    """See kv_write."""
    if len(kv_slots) and int(kv_slots.min()) < 0:
        real = kv_slots >= 0
        k, v, kv_slots = k[real], v[real], kv_slots[real]
    k_cache.view(-1, *k_cache.shape[2:]).index_copy_(0, kv_slots, k)
    v_cache.view(-1, *v_cache.shape[2:]).index_copy_(0, kv_slots, v)


def kv_write(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    kv_slots: torch.Tensor,
) -> None:
    """k [T, K, D], v [T, K, V] into k_cache [blocks, block_size, K, D] and v_cache [.., V].

    The numbers of a head are adjacent, the caches contiguous, all of one dtype; kv_slots int64 [T],
    distinct but for the -1 of padding.
    """
    (kv_write_gpu if uses_kernels(k) else kv_write_cpu)(k, v, k_cache, v_cache, kv_slots)
