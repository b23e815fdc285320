"""Paged prefill: sequences with several new tokens, behind a cached prefix or none.

    out[t, h] = softmax(cap(scale · q[t, h] · Kᵀ)) · V   over the tokens j <= i of t's sequence

Query m of n new ones stands at i = context - n + m; with a window w only j > i - w count. q
[T, heads, D], out [T, heads, V] fp16, bf16 or fp32; sums fp32. Floor: 2 · heads · (D + V) flops for
each pair (i, j), which is what counts from some hundred queries on; K and V are read once per tile
of queries. So a tile packs the query heads of one KV head and as many queries as 64 rows take,
stops at its last query, and masks only the blocks that the diagonal or the window's edge runs
through. Online softmax arXiv 2205.14135, paging arXiv 2309.06180.

Which queries make a tile is a list, made on the host: the grid has no more programs than the batch
has tiles, however much its sequences differ in length, and long tiles start first. A launch for a
longer list (a captured CUDA graph) is right for any list written there: entries without queries
return at once.

On Hopper the weights are a register operand of their wgmma. As an accumulating dot of a pipelined
loop it would still be in flight when the loop goes round, and ptxas before 13.3 may overwrite such
registers. online_softmax adds the product by itself, which waits for it at once: only the loads of
K and V stay in flight.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from multilora_kernels.openai_triton import next_power_of_2, tl, triton
from multilora_kernels.paged_tile import (
    Scores,
    add_sinks,
    load_blocks,
    load_kv,
    load_queries,
    online_softmax,
    start_rows,
    store_rows,
)

# Two programs of 64 rows share a Hopper multiprocessor and compute while the other waits: on an
# H200 0.95 of the time of one program of 128.
_TILE_ROWS = 64


@triton.jit
def _attend(
    q, k_ptr, v_ptr, table_ptr, begin, end, low, position, window, kv_head, k_stride, v_stride,
    log2_scale, log2_cap, top, total, acc,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The context tokens from `begin` to `end`; where MASKED, each row those it may see."""
    n = begin + tl.arange(0, BLOCK_N)
    block = load_blocks(table_ptr, n, n < end, BLOCK_SIZE)
    for _ in range(begin, end, BLOCK_N):
        k, v = load_kv(k_ptr, v_ptr, block, n, (n >= low) & (n < end), kv_head, k_stride, v_stride,
                       HEAD_DIM, VALUE_DIM, q.shape[1], acc.shape[1], BLOCK_SIZE,
                       MASKED)  # fmt: skip
        seen = (n[None, :] <= position[:, None]) & (n[None, :] > position[:, None] - window)
        top, total, acc = online_softmax(q, k, v, seen, log2_scale, log2_cap, top, total, acc,
                                         MASKED, False, CAPPED)  # fmt: skip
        n += BLOCK_N
        block = load_blocks(table_ptr, n, n < end, BLOCK_SIZE)
    return top, total, acc


@triton.jit
def _tile_range(first, end, window, BLOCK_N: tl.constexpr):
    """Of the queries at positions `first` to `end`: the first token seen by any, then (by blocks)
    where the window's edge begins, where all see all, where the diagonal begins."""
    low = max(first - window + 1, 0)
    full = min(tl.cdiv(max(end - window, 0), BLOCK_N) * BLOCK_N, end)
    diagonal = max((first + 1) // BLOCK_N * BLOCK_N, full)
    return low, low // BLOCK_N * BLOCK_N, full, diagonal


@triton.jit(do_not_specialize=["table_stride"])
def paged_prefill_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, tiles_ptr, tables_ptr, sinks_ptr,
    log2_scale, log2_cap, window, q_stride, out_stride, k_stride, v_stride, table_stride,
    GROUP: tl.constexpr, WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, CAPPED: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Grid (KV heads, query tiles); see load_queries."""
    kv_head, entry = tl.program_id(0), tiles_ptr + tl.program_id(1) * 4
    row, count = tl.load(entry), tl.load(entry + 1)
    if count == 0:
        return
    first, sequence = tl.load(entry + 2), tl.load(entry + 3)
    q, query, head, rows, there = load_queries(q_ptr, row, count, kv_head, q_stride,
                                               GROUP, HEAD_DIM, BLOCK_M, BLOCK_D)  # fmt: skip
    top, total, acc = start_rows(BLOCK_M, BLOCK_V)
    if SINKS:
        top, total = add_sinks(sinks_ptr, head, there, top, total)
    end, position = first + count, first + query
    low, begin, full, diagonal = _tile_range(first, end, window, BLOCK_N)
    table_ptr = tables_ptr + sequence * table_stride
    if WINDOW:
        top, total, acc = _attend(
            q, k_ptr, v_ptr, table_ptr, begin, full, low, position, window, kv_head, k_stride,
            v_stride, log2_scale, log2_cap, top, total, acc, HEAD_DIM, VALUE_DIM, BLOCK_SIZE,
            BLOCK_N, CAPPED, True,
        )  # fmt: skip
    top, total, acc = _attend(
        q, k_ptr, v_ptr, table_ptr, full, diagonal, low, position, window, kv_head, k_stride,
        v_stride, log2_scale, log2_cap, top, total, acc, HEAD_DIM, VALUE_DIM, BLOCK_SIZE, BLOCK_N,
        CAPPED, False,
    )  # fmt: skip
    top, total, acc = _attend(
        q, k_ptr, v_ptr, table_ptr, diagonal, end, low, position, window, kv_head, k_stride,
        v_stride, log2_scale, log2_cap, top, total, acc, HEAD_DIM, VALUE_DIM, BLOCK_SIZE, BLOCK_N,
        CAPPED, True,
    )  # fmt: skip
    store_rows(out_ptr, acc, total, head, rows, there, out_stride, VALUE_DIM)


class QueryTiles(NamedTuple):
    """`table` int32 [tiles, 4], on the device; see query_tiles. No tile has more than `queries`."""

    table: torch.Tensor
    queries: int

    @staticmethod
    def of(
        new: Sequence[int],
        context_lens: Sequence[int],
        heads: int,
        cache: torch.Tensor,
    ) -> "QueryTiles":
        """Of a batch by itself; arguments as those of query_tiles and prefill_queries."""
        queries = prefill_queries(heads, cache)
        table = query_tiles(np.array(new), np.array(context_lens), queries)
        return QueryTiles(torch.from_numpy(table).to(cache.device), queries)


def query_tiles(new: np.ndarray, context_lens: np.ndarray, queries: int) -> np.ndarray:
    """int32 [tiles, 4]: first row, number of queries, position of the first, sequence.

    `new` [S] are the new tokens of each sequence, whose rows follow each other, `context_lens` [S]
    its tokens with these. Sequences with one new token have no tile: paged_decode is for them.
    """
    sequence = np.flatnonzero(new > 1)
    per_sequence = -(-new[sequence] // queries)
    owner = np.repeat(sequence, per_sequence)
    before = np.cumsum(per_sequence) - per_sequence
    done = (np.arange(len(owner)) - np.repeat(before, per_sequence)) * queries
    row, left = (np.cumsum(new) - new)[owner] + done, new[owner] - done
    position, count = context_lens[owner] - left, np.minimum(left, queries)
    tiles = np.stack((row, count, position, owner), axis=1).astype(np.int32)
    return tiles[np.argsort(-(position + count), kind="stable")]


def most_query_tiles(rows: int, sequences: int, queries: int) -> int:
    """The most that query_tiles gives for `rows` new tokens of up to `sequences` sequences.

    n tokens make 1 + (n - 1) // queries tiles, and sequences that have any have two tokens.
    """
    prompts = min(sequences, rows // 2)
    return prompts + (rows - prompts) // queries


def prefill_queries(heads: int, cache: torch.Tensor) -> int:
    """How many queries a tile has at most, over a cache of K.

    No tensor core multiplies fp32: a thread holds both operands in registers, so that larger tiles
    than these spill kilobytes of them.
    """
    kv_heads, head_dim = cache.shape[-2:]
    full_wide = cache.itemsize > 2 and _is_wide(head_dim, cache.itemsize)
    return max(1, (_TILE_ROWS // 2 if full_wide else _TILE_ROWS) // (heads // kv_heads))


def _is_wide(head_dim: int, itemsize: int) -> bool:
    return max(16, next_power_of_2(head_dim)) * itemsize > 256


def prefill_options(group: int, head_dim: int, itemsize: int, queries: int) -> dict[str, int]:
    """Block sizes and compile options; any GPU has the shared memory they take with as many
    `queries` as prefill_queries gives."""
    full, wide = itemsize > 2, _is_wide(head_dim, itemsize)
    block_n = (32 if wide else 64) // (2 if full else 1)
    block_m = max(16, next_power_of_2(queries * group))
    return {
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": max(16, next_power_of_2(head_dim)),
        "num_warps": 8 if block_m > 64 or wide or full else 4,
        "num_stages": 2 if wide or full else 3,
    }  # fmt: skip


def prefill_gpu(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    tiles: QueryTiles,
    block_tables: torch.Tensor,
    out: torch.Tensor,
    scores: Scores,
    sliding_window: int | None,
) -> None:
    """Write the rows of `out` that `tiles` name; see paged_attention."""
    _, heads, head_dim = q.shape
    block_size, kv_heads = k_cache.shape[1:3]
    group, value_dim = heads // kv_heads, v_cache.shape[3]
    options = prefill_options(group, head_dim, q.itemsize, tiles.queries)
    paged_prefill_kernel[(kv_heads, len(tiles.table))](
        q, k_cache, v_cache, out, tiles.table, block_tables, scores.sinks, scores.log2_scale,
        scores.log2_cap, sliding_window or 1 << 30, q.stride(0), out.stride(0), k_cache.stride(1),
        v_cache.stride(1), block_tables.stride(0), GROUP=group, WINDOW=sliding_window is not None,
        HEAD_DIM=head_dim, VALUE_DIM=value_dim, BLOCK_SIZE=block_size,
        BLOCK_V=max(16, next_power_of_2(value_dim)), **options, **scores.options,
    )  # fmt: skip
