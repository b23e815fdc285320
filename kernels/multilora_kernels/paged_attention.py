"""Paged attention: new tokens of many sequences attend to their KV blocks, prefill and decode.

    out[t, h] = softmax(scale · q[t, h] · Kᵀ) · V        over the tokens j <= i of t's sequence

A sequence with n new tokens and context length c (new ones included) has its query m at position
i = c - n + m; with a sliding window w only j > i - w count. Query head h reads KV head
h // (heads / kv_heads). Floor: at decode the K and V of all contexts are read once,
2 · Σc · kv_heads · head_dim · itemsize bytes. Hence: a program packs all query heads of one KV head
(and at prefill several queries) into one tile, so that K and V are read once for the group; the
softmax is computed online (arXiv 2205.14135). Paging: arXiv 2309.06180.
"""

import torch

from multilora_kernels.openai_triton import next_power_of_2, tl, triton
from multilora_kernels.paged_attention_cpu import paged_attention_cpu
from multilora_kernels.paged_context import PagedContext

BLOCK_N = 64


@triton.jit
def _load_kv(
    k_ptr, v_ptr, table_ptr, n, n_mask, kv_column, cache_stride, d, d_mask,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """K and V [len(n), len(d)] of the context tokens `n`, found through one block table."""
    block = tl.load(table_ptr + n // BLOCK_SIZE, mask=n_mask, other=0).to(tl.int64)
    slot = (block * BLOCK_SIZE + n % BLOCK_SIZE) * cache_stride + kv_column
    mask = n_mask[:, None] & d_mask[None, :]
    k = tl.load(k_ptr + slot[:, None] + d[None, :], mask=mask, other=0.0)
    v = tl.load(v_ptr + slot[:, None] + d[None, :], mask=mask, other=0.0)
    return k, v


@triton.jit
def _online_softmax(q, k, v, seen, scale, top, total, acc):
    """One more block of scores: the running maximum, sum of weights and weighted sum of V."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    # A row may have seen nothing yet (sliding window): keep exp(-inf - -inf) out.
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp(scores - shift[:, None])
    decay = tl.exp(top - shift)
    total = total * decay + tl.sum(weights, 1)
    acc = acc * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return new_top, total, acc


@triton.jit
def paged_attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, cu_seqlens_ptr, context_lens_ptr, tables_ptr,
    scale, window, q_stride, out_stride, cache_stride, table_stride,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (sequences, KV heads, query tiles). Tile row m is query m // GROUP, head m % GROUP."""
    sequence, kv_head, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row_start = tl.load(cu_seqlens_ptr + sequence)
    new = tl.load(cu_seqlens_ptr + sequence + 1) - row_start
    if tile * BLOCK_Q >= new:
        return
    context = tl.load(context_lens_ptr + sequence)
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    query = tile * BLOCK_Q + m // GROUP
    position = context - new + query
    rows = (row_start + query).to(tl.int64)
    columns = (kv_head * GROUP + m % GROUP) * HEAD_DIM
    d_mask = d < HEAD_DIM
    mask = ((m < BLOCK_Q * GROUP) & (query < new))[:, None] & d_mask[None, :]
    q_tile = q_ptr + rows[:, None] * q_stride + columns[:, None] + d[None, :]
    q = tl.load(q_tile, mask=mask, other=0.0)
    last = min(context - new + tile * BLOCK_Q + BLOCK_Q, context)
    first = max(context - new + tile * BLOCK_Q - window + 1, 0) // BLOCK_N * BLOCK_N
    top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in range(first, last, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        table = tables_ptr + sequence * table_stride
        k, v = _load_kv(k_ptr, v_ptr, table, n, n < last, kv_head * HEAD_DIM, cache_stride, d,
                        d_mask, BLOCK_SIZE)  # fmt: skip
        seen = (n[None, :] <= position[:, None]) & (n[None, :] > position[:, None] - window)
        top, total, acc = _online_softmax(
            q, k, v, seen & (n < last)[None, :], scale, top, total, acc
        )
    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    out_tile = out_ptr + rows[:, None] * out_stride + columns[:, None] + d[None, :]
    tl.store(out_tile, out.to(out_ptr.dtype.element_ty), mask=mask)


def attention_options(
    heads: int, kv_heads: int, head_dim: int, block_size: int, max_seqlen_q: int
) -> dict[str, int]:
    """Constants and compile options of a launch.

    One stage from 64 rows on: the weights are a register operand, and ptxas before 13.3 may
    overwrite the registers of a wgmma still in flight, as pipelining leaves it.
    """
    group = heads // kv_heads
    block_q = max(1, (16 if max_seqlen_q == 1 else 64) // group)
    block_m = max(16, next_power_of_2(block_q * group))
    return {
        "GROUP": group, "HEAD_DIM": head_dim, "BLOCK_SIZE": block_size, "BLOCK_Q": block_q,
        "BLOCK_M": block_m, "BLOCK_D": max(16, next_power_of_2(head_dim)), "BLOCK_N": BLOCK_N,
        "num_warps": 4, "num_stages": 1 if block_m >= 64 or head_dim > 128 else 2,
    }  # fmt: skip


def paged_attention_gpu(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    scale: float,
    max_seqlen_q: int,
    sliding_window: int | None,
) -> torch.Tensor:
    """See paged_attention; rows of no sequence are not set."""
    _, heads, head_dim = q.shape
    block_size, kv_heads = k_cache.shape[1:3]
    options = attention_options(heads, kv_heads, head_dim, block_size, max_seqlen_q)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    grid = (len(context_lens), kv_heads, -(-max_seqlen_q // options["BLOCK_Q"]))
    paged_attention_kernel[grid](
        q, k_cache, v_cache, out, cu_seqlens_q, context_lens, block_tables,
        scale, sliding_window or 1 << 30, q.stride(0), out.stride(0), k_cache.stride(1),
        block_tables.stride(0), **options,
    )  # fmt: skip
    return out


def paged_attention_reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """float64, one query and head at a time in plain words."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    block_size, kv_heads = k_cache.shape[1:3]
    for s, context in enumerate(context_lens.tolist()):
        start, stop = cu_seqlens_q[s : s + 2].tolist()
        blocks = block_tables[s, : -(-context // block_size)].long().cpu()
        k, v = (cache.cpu()[blocks].double().flatten(0, 1) for cache in (k_cache, v_cache))
        for row in range(start, stop):
            i = context - (stop - row)
            low = 0 if sliding_window is None else max(0, i - sliding_window + 1)
            for head in range(q.shape[1]):
                kv_head = head // (q.shape[1] // kv_heads)
                scores = k[low : i + 1, kv_head] @ q[row, head].cpu().double() * scale
                out[row, head] = scores.softmax(0) @ v[low : i + 1, kv_head]
    return out


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    *,
    scale: float,
    max_seqlen_q: int,
    max_context_len: int,
    sliding_window: int | None = None,
    context: PagedContext | None = None,
) -> torch.Tensor:
    """q [T, heads, D] → [T, heads, D]; caches [blocks, block_size, kv_heads, D] contiguous.

    cu_seqlens_q int32 [S + 1], context_lens int32 [S], block_tables int32 [S, max_blocks], all on
    q's device; heads a multiple of kv_heads, block_size a power of two, q of the caches' dtype with
    its heads adjacent. `max_seqlen_q` and `max_context_len` bound the lengths. `context` is the one
    of this forward pass; without it a CPU works it out again in every layer.
    """
    if q.is_cuda:
        return paged_attention_gpu(
            q, k_cache, v_cache, cu_seqlens_q, context_lens, block_tables, scale, max_seqlen_q,
            sliding_window,
        )  # fmt: skip
    context = context or PagedContext(cu_seqlens_q, context_lens, block_tables)
    return paged_attention_cpu(q, k_cache, v_cache, context, scale, sliding_window)
