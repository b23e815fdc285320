"""Paged decode: the one new token of each sequence attends to its KV blocks, the context in splits.

    out[s, h] = softmax(cap(scale · q[s, h] · Kᵀ)) · V       over the seen tokens of sequence s
    split p:    (out_p, L_p),  L_p = log2 Σ 2^score          combined:  Σ 2^(L_p - L) · out_p,
                                                             L = log2 Σ 2^L_p

q [T, heads, D], out [T, heads, V] fp16, bf16 or fp32; partial results fp32; a sink counts in the
first split. Floor: K and V are read once,
2 · Σc · kv_heads · head_dim · itemsize bytes; splits add 8 · heads · D bytes each. So one program
takes all query heads of a KV head (up to 16 rows; mma.sync, as 16 rows are too few for wgmma), and
contexts are split until the programs fill the GPU (Flash-Decoding, 2023; online softmax arXiv
2205.14135, paging arXiv 2309.06180).

Which program takes which tokens is the same in all layers, so one small launch a pass works it out
on the device (DecodeWork), where a captured CUDA graph finds the contexts: all splits of all
sequences are about equally long, whatever the mix of lengths. On an H200 a pass over contexts of 90
to 5800 tokens took 0.74 of its time with as many splits for each sequence (32 sequences), and 64 of
512 tokens 0.76. Where one split is all there is, it writes `out` itself; else the program that
arrives last adds up the others' results, in their order, so that they are the same bit for bit.
"""

from typing import NamedTuple

import torch

from multilora_kernels.openai_triton import next_power_of_2, num_programs, tl, triton
from multilora_kernels.paged_tile import (
    Scores,
    add_sinks,
    load_blocks,
    load_kv,
    online_softmax,
    start_rows,
)

BLOCK_M = 16
MIN_SPLIT = 128  # tokens; shorter ones cost more in partial results than they win
MAX_SPLITS = 64  # of one sequence
_ITEM = 5  # integers: sequence or -1, its tokens from and to, its first item, how many it has
_PLAN_BLOCK = 256  # sequences at a time


class DecodeWork(NamedTuple):
    """The splits of the sequences with one new token; the same in all layers of a pass."""

    items: torch.Tensor  # int32 [W, 5], see _ITEM
    arrivals: torch.Tensor  # int32 [S, columns], 0: the splits of each that have been computed


@triton.jit
def _counts(
    cu_seqlens_ptr, context_lens_ptr, s, sequences, window, chunk,
    BLOCK_N: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """Of sequences s: first token that is seen, how many are, length of splits and how many."""
    start = tl.load(cu_seqlens_ptr + s, mask=s < sequences, other=0)
    new = tl.load(cu_seqlens_ptr + s + 1, mask=s < sequences, other=0) - start
    context = tl.load(context_lens_ptr + s, mask=s < sequences, other=0)
    first = tl.maximum(context - window, 0)
    seen = tl.where(new == 1, context - first, 0)
    count = tl.minimum(tl.maximum(tl.cdiv(seen, chunk), 1), MAX_SPLITS)
    length = tl.maximum(tl.cdiv(tl.cdiv(seen, count), BLOCK_N) * BLOCK_N, BLOCK_N)
    # A padding row has context 0; its one split writes zeros.
    return first, seen, length, tl.where(new == 1, tl.maximum(tl.cdiv(seen, length), 1), 0)


@triton.jit(do_not_specialize=["sequences", "window", "target", "items", "columns"])
def decode_plan_kernel(
    cu_seqlens_ptr, context_lens_ptr, items_ptr, arrivals_ptr, sequences, window, target, items,
    columns, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, MIN_SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr, ITEM: tl.constexpr,
):  # fmt: skip
    """One program. About `target` splits: no more than that and one for each sequence."""
    lane = tl.arange(0, BLOCK)
    total = 0
    for s0 in range(0, sequences, BLOCK):
        _, seen, _, _ = _counts(cu_seqlens_ptr, context_lens_ptr, s0 + lane, sequences, window, 1,
                                BLOCK_N, MAX_SPLITS)  # fmt: skip
        total += tl.sum(seen, 0)
    chunk = max(tl.cdiv(tl.cdiv(total, target), BLOCK_N) * BLOCK_N, MIN_SPLIT)
    used = 0
    for s0 in range(0, sequences, BLOCK):
        s = s0 + lane
        first, seen, length, count = _counts(cu_seqlens_ptr, context_lens_ptr, s, sequences, window,
                                             chunk, BLOCK_N, MAX_SPLITS)  # fmt: skip
        own = used + tl.cumsum(count, 0) - count
        for split in range(0, tl.max(count, 0)):
            item_ptr = items_ptr + (own + split) * ITEM
            mask = split < count
            tl.store(item_ptr, s, mask=mask)
            tl.store(item_ptr + 1, first + split * length, mask=mask)
            tl.store(item_ptr + 2, first + tl.minimum((split + 1) * length, seen), mask=mask)
            tl.store(item_ptr + 3, own, mask=mask)
            tl.store(item_ptr + 4, count, mask=mask)
        used += tl.sum(count, 0)
    for start in range(used, items, BLOCK):
        nobody = tl.full((BLOCK,), -1, tl.int32)
        tl.store(items_ptr + (start + lane) * ITEM, nobody, mask=start + lane < items)
    for start in range(0, sequences * columns, BLOCK):
        zero = tl.zeros((BLOCK,), tl.int32)
        tl.store(arrivals_ptr + start + lane, zero, mask=start + lane < sequences * columns)


@triton.jit
def _combine(
    partial_ptr, log_sum_ptr, out_ptr, first, heads, count, head, head_mask, d,
    VALUE_DIM: tl.constexpr, MAX_SPLITS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Results of `count` items from `first` on. No load waits for another's value."""
    # Another multiprocessor wrote them: .cg reads past this one's own cache.
    part, split = first * heads + head, tl.arange(0, MAX_SPLITS)
    log_sums = tl.load(
        log_sum_ptr + part[:, None] + split[None, :] * heads,
        mask=head_mask[:, None] & (split < count)[None, :], other=-1e30, cache_modifier=".cg",
    )  # fmt: skip
    top = tl.max(log_sums, 1)
    total = tl.sum(tl.exp2(log_sums - top[:, None]), 1)
    acc = tl.zeros((head.shape[0], d.shape[0]), dtype=tl.float32)
    mask = head_mask[:, None] & (d < VALUE_DIM)[None, :]
    for start in range(0, count, UNROLL):
        for index in tl.static_range(UNROLL):
            own, there = part + (start + index) * heads, start + index < count
            log_sum = tl.load(log_sum_ptr + own, mask=head_mask & there, other=-float("inf"),
                              cache_modifier=".cg")  # fmt: skip
            values = tl.load(partial_ptr + own[:, None] * VALUE_DIM + d[None, :],
                             mask=mask & there, other=0.0, cache_modifier=".cg")  # fmt: skip
            acc += tl.exp2(log_sum - top)[:, None] * values
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + head[:, None] * VALUE_DIM + d[None, :], out, mask=mask)


@triton.jit(do_not_specialize=["table_stride"])
def paged_decode_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, partial_ptr, log_sum_ptr, arrivals_ptr, items_ptr, cu_seqlens_ptr,
    tables_ptr, sinks_ptr, log2_scale, log2_cap, q_stride, out_stride, k_stride, v_stride,
    table_stride,
    GROUP: tl.constexpr, TILES: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, MAX_SPLITS: tl.constexpr, ITEM: tl.constexpr,
    CAPPED: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Grid (columns: KV heads · tiles of a group, items)."""
    column, columns, item = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    item_ptr = items_ptr + item * ITEM
    sequence, begin = tl.load(item_ptr), tl.load(item_ptr + 1)
    end, first, count = tl.load(item_ptr + 2), tl.load(item_ptr + 3), tl.load(item_ptr + 4)
    if sequence < 0:
        return
    row = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    kv_head, member0 = column // TILES, column % TILES * BLOCK_M
    member, d = member0 + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    head, heads = kv_head * GROUP + member, columns // TILES * GROUP
    mask = (member < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    place = head[:, None] * HEAD_DIM + d[None, :]
    table_ptr = tables_ptr + sequence * table_stride
    n = begin + tl.arange(0, BLOCK_N)
    block = load_blocks(table_ptr, n, n < end, BLOCK_SIZE)
    q = tl.load(q_ptr + row * q_stride + place, mask=mask, other=0.0)
    top, total, acc = start_rows(BLOCK_M, BLOCK_V)
    if SINKS:
        top, total = add_sinks(sinks_ptr, head, (member < GROUP) & (item == first), top, total)
    for _ in range(begin, end, BLOCK_N):
        k, v = load_kv(k_ptr, v_ptr, block, n, n < end, kv_head, k_stride, v_stride, HEAD_DIM,
                       VALUE_DIM, BLOCK_D, BLOCK_V, BLOCK_SIZE, True)  # fmt: skip
        seen = (n < end)[None, :]
        top, total, acc = online_softmax(q, k, v, seen, log2_scale, log2_cap, top, total, acc,
                                         True, True, CAPPED)  # fmt: skip
        n += BLOCK_N
        block = load_blocks(table_ptr, n, n < end, BLOCK_SIZE)
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    e = tl.arange(0, BLOCK_V)
    mask = (member < GROUP)[:, None] & (e < VALUE_DIM)[None, :]
    place = head[:, None] * VALUE_DIM + e[None, :]
    if count == 1:
        out = acc.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row * out_stride + place, out, mask=mask)
    else:
        part = item * heads + head
        tl.store(partial_ptr + part[:, None] * VALUE_DIM + e[None, :], acc, mask=mask)
        tl.store(log_sum_ptr + part, top + tl.log2(total), mask=member < GROUP)
        tl.debug_barrier()  # all threads have stored before one says so
        arrived = tl.atomic_add(arrivals_ptr + sequence * columns + column, 1, sem="acq_rel")
        if arrived == count - 1:
            tl.store(arrivals_ptr + sequence * columns + column, 0)  # for the next layer
            own = member0 + tl.arange(0, BLOCK_G)
            _combine(partial_ptr, log_sum_ptr, out_ptr + row * out_stride, first, heads, count,
                     kv_head * GROUP + own, own < GROUP, e, VALUE_DIM, MAX_SPLITS,
                     32 // BLOCK_G)  # fmt: skip


def decode_options(head_dim: int, itemsize: int, few: bool) -> dict[str, int]:
    """Block sizes and compile options.

    Two warps and 16 KB of K and V a block: four programs share a Hopper multiprocessor, three
    blocks on their way in each. A `few` sequences are split until each multiprocessor has two
    programs, which keep as much on its way in larger blocks: with those and four warps 64
    sequences took 1.15 of the time, and one 0.8. No tensor core multiplies fp32: its operands lie
    in the registers of more threads, and its blocks take up to 64 KB, which any GPU has.
    """
    block_d = max(16, next_power_of_2(head_dim))
    if itemsize > 2:
        block_n = 32 if block_d * itemsize > 256 else 64
        stages = 3 if block_d <= 128 else 2
        return {"BLOCK_D": block_d, "BLOCK_N": block_n, "num_warps": 8, "num_stages": stages}
    block_n = min(64, max(16, (8192 if few else 4096) // block_d))
    warps, stages = (4, 3) if few else (2, 4)
    return {"BLOCK_D": block_d, "BLOCK_N": block_n, "num_warps": warps, "num_stages": stages}


def _tiles(heads: int, kv_heads: int) -> int:
    """Tiles of BLOCK_M query heads that the group of a KV head fills."""
    return -(-(heads // kv_heads) // BLOCK_M)


def _are_few(q: torch.Tensor, sequences: int, columns: int) -> bool:
    """Whether the sequences do not fill the multiprocessors unless they are split."""
    return sequences * columns <= num_programs(q, 1)


def decode_work(
    q: torch.Tensor,
    kv_heads: int,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    window: int | None,
    programs: int | None = None,
) -> DecodeWork:
    """For queries as `q` of sequences as those of paged_attention; about `programs` in all."""
    columns, sequences = kv_heads * _tiles(q.shape[1], kv_heads), len(context_lens)
    few = _are_few(q, sequences, columns)
    target = max(1, (programs or num_programs(q, 2 if few else 3)) // columns)
    integers = {"dtype": torch.int32, "device": q.device}
    items = torch.empty(target + sequences, _ITEM, **integers)
    arrivals = torch.empty(sequences, columns, **integers)
    decode_plan_kernel[(1,)](
        cu_seqlens_q, context_lens, items, arrivals, sequences, window or 1 << 30, target,
        len(items), columns, BLOCK=_PLAN_BLOCK,
        BLOCK_N=decode_options(q.shape[2], q.itemsize, few)["BLOCK_N"], MIN_SPLIT=MIN_SPLIT,
        MAX_SPLITS=MAX_SPLITS, ITEM=_ITEM, num_warps=4, num_stages=1,
    )  # fmt: skip
    return DecodeWork(items, arrivals)


def decode_gpu(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    block_tables: torch.Tensor,
    out: torch.Tensor,
    scores: Scores,
    work: DecodeWork,
) -> None:
    """Write the rows of `out` of sequences with one new token; see paged_attention."""
    _, heads, head_dim = q.shape
    block_size, kv_heads = k_cache.shape[1:3]
    group, tiles, items = heads // kv_heads, _tiles(heads, kv_heads), len(work.items)
    few, value_dim = _are_few(q, *work.arrivals.shape), v_cache.shape[3]
    partial = torch.empty(items, heads, value_dim, dtype=torch.float32, device=q.device)
    log_sum = torch.empty(items, heads, dtype=torch.float32, device=q.device)
    paged_decode_kernel[(kv_heads * tiles, items)](
        q, k_cache, v_cache, out, partial, log_sum, work.arrivals, work.items, cu_seqlens_q,
        block_tables, scores.sinks, scores.log2_scale, scores.log2_cap, q.stride(0), out.stride(0),
        k_cache.stride(1), v_cache.stride(1), block_tables.stride(0), GROUP=group, TILES=tiles,
        HEAD_DIM=head_dim, VALUE_DIM=value_dim, BLOCK_SIZE=block_size, BLOCK_M=BLOCK_M,
        BLOCK_G=min(BLOCK_M, next_power_of_2(group)), BLOCK_V=max(16, next_power_of_2(value_dim)),
        MAX_SPLITS=MAX_SPLITS, ITEM=_ITEM, **decode_options(head_dim, q.itemsize, few),
        **scores.options,
    )  # fmt: skip
