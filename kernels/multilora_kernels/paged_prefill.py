"""Paged prefill: sequences with several new tokens, behind a cached prefix or none.

    out[t, h] = softmax(scale · q[t, h] · Kᵀ) · V        over the tokens j <= i of t's sequence

Query m of n new ones stands at i = context - n + m; with a window w only j > i - w count. q, out
[T, heads, D] fp16, bf16 or fp32; sums fp32. Floor: 4 · heads · head_dim flops for each pair (i, j),
which is what counts from some hundred queries on; K and V are read once per tile of queries. So a
tile packs the query heads of one KV head and as many queries as 64 or 128 rows take, stops at its
last query, and masks only the blocks that the diagonal or the window's edge runs through. Long
tiles start first. Online softmax arXiv 2205.14135, paging arXiv 2309.06180.

On Hopper the weights are a register operand of their wgmma. As an accumulating dot of a pipelined
loop it would still be in flight when the loop goes round, and ptxas before 13.3 may overwrite such
registers. online_softmax adds the product by itself, which waits for it at once: only the loads of
K and V stay in flight.
"""

import torch

from multilora_kernels.openai_triton import next_power_of_2, num_programs, tl, triton
from multilora_kernels.paged_decode import LOG2_E
from multilora_kernels.paged_tile import load_blocks, load_kv, online_softmax, start_rows


@triton.jit
def _attend(
    q, k_ptr, v_ptr, table_ptr, begin, end, low, position, window, kv_column, cache_stride,
    log2_scale, top, total, acc,
    HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The context tokens from `begin` to `end`; where MASKED, each row those it may see."""
    d = tl.arange(0, acc.shape[1])
    n = begin + tl.arange(0, BLOCK_N)
    block = load_blocks(table_ptr, n, n < end, BLOCK_SIZE)
    for _ in range(begin, end, BLOCK_N):
        k, v = load_kv(k_ptr, v_ptr, block, n, (n >= low) & (n < end), kv_column, cache_stride,
                       d, HEAD_DIM, BLOCK_SIZE, MASKED)  # fmt: skip
        seen = (n[None, :] <= position[:, None]) & (n[None, :] > position[:, None] - window)
        top, total, acc = online_softmax(q, k, v, seen, log2_scale, top, total, acc, MASKED)
        n += BLOCK_N
        block = load_blocks(table_ptr, n, n < end, BLOCK_SIZE)
    return top, total, acc


@triton.jit
def _tile_range(first, context, window, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of a tile of queries from position `first` on: the first token seen by any, then (by
    blocks) where the window's edge begins, where all see all, where the diagonal begins, the end.
    """
    end = min(first + BLOCK_Q, context)
    low = max(first - window + 1, 0)
    full = min(tl.cdiv(max(end - window, 0), BLOCK_N) * BLOCK_N, end)
    diagonal = max((first + 1) // BLOCK_N * BLOCK_N, full)
    return low, low // BLOCK_N * BLOCK_N, full, diagonal, end


@triton.jit(do_not_specialize=["table_stride"])
def paged_prefill_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, cu_seqlens_ptr, context_lens_ptr, tables_ptr,
    log2_scale, window, q_stride, out_stride, cache_stride, table_stride,
    GROUP: tl.constexpr, WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid (KV heads, sequences, query tiles). Tile row m is query m // GROUP, head m % GROUP."""
    kv_head, sequence = tl.program_id(0), tl.program_id(1)
    tile = tl.num_programs(2) - 1 - tl.program_id(2)
    row = tl.load(cu_seqlens_ptr + sequence)
    new = tl.load(cu_seqlens_ptr + sequence + 1) - row
    if (new == 1) | (tile * BLOCK_Q >= new):
        return
    context = tl.load(context_lens_ptr + sequence)
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    query = tile * BLOCK_Q + m // GROUP
    place = (kv_head * GROUP + m % GROUP)[:, None] * HEAD_DIM + d[None, :]
    mask = ((m < BLOCK_Q * GROUP) & (query < new))[:, None] & (d < HEAD_DIM)[None, :]
    rows = (row + query).to(tl.int64)[:, None]
    q = tl.load(q_ptr + rows * q_stride + place, mask=mask, other=0.0)
    top, total, acc = start_rows(BLOCK_M, BLOCK_D)
    first = context - new + tile * BLOCK_Q
    low, begin, full, diagonal, end = _tile_range(first, context, window, BLOCK_Q, BLOCK_N)
    table_ptr, kv_column = tables_ptr + sequence * table_stride, kv_head * HEAD_DIM
    if WINDOW:
        top, total, acc = _attend(
            q, k_ptr, v_ptr, table_ptr, begin, full, low, first + m // GROUP, window, kv_column,
            cache_stride, log2_scale, top, total, acc, HEAD_DIM, BLOCK_SIZE, BLOCK_N, True,
        )  # fmt: skip
    top, total, acc = _attend(
        q, k_ptr, v_ptr, table_ptr, full, diagonal, low, first + m // GROUP, window, kv_column,
        cache_stride, log2_scale, top, total, acc, HEAD_DIM, BLOCK_SIZE, BLOCK_N, False,
    )  # fmt: skip
    top, total, acc = _attend(
        q, k_ptr, v_ptr, table_ptr, diagonal, end, low, first + m // GROUP, window, kv_column,
        cache_stride, log2_scale, top, total, acc, HEAD_DIM, BLOCK_SIZE, BLOCK_N, True,
    )  # fmt: skip
    out = (acc / tl.where(total == 0.0, 1.0, total)[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows * out_stride + place, out, mask=mask)


def prefill_options(group: int, head_dim: int, itemsize: int, tile_rows: int) -> dict[str, int]:
    """Block sizes and compile options; any GPU has the shared memory they take.

    No tensor core multiplies fp32: a thread holds both operands in registers, so that larger tiles
    than these spill kilobytes of them.
    """
    block_d = max(16, next_power_of_2(head_dim))
    full, wide = itemsize > 2, block_d * itemsize > 256
    block_n = 32 if wide else 64
    if full:
        block_n //= 2
        tile_rows = min(tile_rows, 32 if wide else 64)
    block_q = max(1, tile_rows // group)
    block_m = max(16, next_power_of_2(block_q * group))
    return {
        "BLOCK_Q": block_q, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": block_d,
        "num_warps": 8 if block_m > 64 or wide or full else 4,
        "num_stages": 2 if wide or full else 3,
    }  # fmt: skip


def prefill_gpu(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    max_seqlen_q: int,
    sliding_window: int | None,
    tile_rows: int | None = None,
) -> None:
    """Write the rows of `out` of sequences with several new tokens; see paged_attention."""
    tokens, heads, head_dim = q.shape
    block_size, kv_heads = k_cache.shape[1:3]
    group = heads // kv_heads
    # Large tiles read K and V less often, where there are enough of them to fill the GPU.
    large = tokens * heads >= 128 * num_programs(q, 2) and head_dim * q.itemsize <= 256
    options = prefill_options(group, head_dim, q.itemsize, tile_rows or (128 if large else 64))
    paged_prefill_kernel[(kv_heads, len(context_lens), -(-max_seqlen_q // options["BLOCK_Q"]))](
        q, k_cache, v_cache, out, cu_seqlens_q, context_lens, block_tables,
        scale * LOG2_E, sliding_window or 1 << 30, q.stride(0), out.stride(0), k_cache.stride(1),
        block_tables.stride(0), GROUP=group, WINDOW=sliding_window is not None,
        HEAD_DIM=head_dim, BLOCK_SIZE=block_size, **options,
    )  # fmt: skip
