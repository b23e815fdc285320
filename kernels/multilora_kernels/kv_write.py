"""KV write: the K and V of new tokens go to their places in the paged cache.

    k_cache[slot // block_size, slot % block_size] = k[t],  slot = kv_slots[t]      (same for v)

A slot of -1 is padding and writes nothing. Floor: 4 · T · kv_heads · head_dim · itemsize bytes
(read and write of both). One program per row: rows land in unrelated places.
Source: PagedAttention (arXiv 2309.06180).
"""

import torch

from multilora_kernels.openai_triton import next_power_of_2, tl, triton


@triton.jit
def kv_write_kernel(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, k_stride, v_stride, cache_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows). WIDTH = kv_heads * head_dim, BLOCK its power of two."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    if slot < 0:
        return
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    k = tl.load(k_ptr + row * k_stride + column, mask=mask)
    v = tl.load(v_ptr + row * v_stride + column, mask=mask)
    tl.store(k_cache_ptr + slot * cache_stride + column, k, mask=mask)
    tl.store(v_cache_ptr + slot * cache_stride + column, v, mask=mask)


def kv_write_gpu(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    kv_slots: torch.Tensor,
) -> None:
    """See kv_write."""
    if not len(kv_slots):
        return
    width = k.shape[1] * k.shape[2]
    kv_write_kernel[(len(kv_slots),)](
        k, v, k_cache, v_cache, kv_slots, k.stride(0), v.stride(0), k_cache.stride(1),
        WIDTH=width, BLOCK=next_power_of_2(width), num_warps=4,
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
    """k, v [T, kv_heads, head_dim], heads adjacent; caches [blocks, block_size, kv_heads, head_dim]
    contiguous; kv_slots int64 [T], distinct. All on one device."""
    write = kv_write_gpu if k.is_cuda else kv_write_cpu
    write(k, v, k_cache, v_cache, kv_slots)
