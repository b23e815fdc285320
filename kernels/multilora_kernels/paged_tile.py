"""Device functions that decode and prefill share: one tile of queries, one block of KV.

    scores = q · Kᵀ · log2_scale                             fp32 [BLOCK_M, BLOCK_N], base 2
    scores = log2_cap · tanh(scores / log2_cap)              where there is a soft cap
    top, total, acc ← the running maximum, the sum of 2^(scores - top), that of 2^(scores - top) · V

The online softmax of arXiv 2205.14135, over the blocks of arXiv 2309.06180. A row that has seen
nothing has total 0 and acc 0; one with a sink has seen a score without a value.
"""

from typing import NamedTuple

import torch

from multilora_kernels.openai_triton import tl, triton

LOG2_E = 1.4426950408889634


class Scores(NamedTuple):
    """What becomes of q · Kᵀ before the softmax, and beside it; see paged_attention."""

    scale: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None  # [heads]

    @property
    def log2_scale(self) -> float:
        return self.scale * LOG2_E

    @property
    def log2_cap(self) -> float:
        return (self.softcap or 0.0) * LOG2_E

    @property
    def options(self) -> dict[str, bool]:
        return {"CAPPED": self.softcap is not None, "SINKS": self.sinks is not None}


@triton.jit
def start_rows(BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr):
    """Top, total and acc of rows that have seen nothing."""
    # Finite, so that top - top is 0 also for a row that the mask hides from a whole block.
    top = tl.full((BLOCK_M,), -1e30, dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    return top, total, tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)


@triton.jit
def add_sinks(sinks_ptr, head, mask, top, total):
    """To rows that have seen nothing, where `mask`, the sinks of their heads."""
    sink = tl.load(sinks_ptr + head, mask=mask, other=0.0).to(tl.float32) * 1.4426950408889634
    return tl.where(mask, sink, top), tl.where(mask, 1.0, total)


@triton.jit
def load_queries(
    q_ptr, row, count, kv_head, q_stride,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """q [BLOCK_M, BLOCK_D] of `count` queries from row `row` on, all heads of one KV head: tile row
    m is query m // GROUP, head m % GROUP. Also each one's query, its head and row in q and out, and
    whether it is there."""
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    query, head = m // GROUP, kv_head * GROUP + m % GROUP
    rows, there = (row + query).to(tl.int64), query < count
    place = rows[:, None] * q_stride + head[:, None] * HEAD_DIM + d[None, :]
    q = tl.load(q_ptr + place, mask=there[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    return q, query, head, rows, there


@triton.jit
def store_rows(out_ptr, acc, total, head, rows, there, out_stride, VALUE_DIM: tl.constexpr):
    """What the queries that are there have seen, weighted: acc / total."""
    e = tl.arange(0, acc.shape[1])
    out = (acc / tl.where(total == 0.0, 1.0, total)[:, None]).to(out_ptr.dtype.element_ty)
    place = rows[:, None] * out_stride + head[:, None] * VALUE_DIM + e[None, :]
    tl.store(out_ptr + place, out, mask=there[:, None] & (e < VALUE_DIM)[None, :])


@triton.jit
def load_blocks(table_ptr, n, n_mask, BLOCK_SIZE: tl.constexpr):
    """The cache blocks of the context tokens `n`; where not n_mask, block 0."""
    return tl.load(table_ptr + n // BLOCK_SIZE, mask=n_mask, other=0)


@triton.jit
def _load(
    cache_ptr, token, n_mask, kv_head, stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, BLOCK)
    mask = (d < WIDTH)[None, :]
    if MASKED:
        mask = mask & n_mask[:, None]
    place = token * stride + kv_head * WIDTH
    return tl.load(cache_ptr + place[:, None] + d[None, :], mask=mask, other=0.0)


@triton.jit
def load_kv(
    k_ptr, v_ptr, block, n, n_mask, kv_head, k_stride, v_stride,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """K [len(n), BLOCK_D] and V [len(n), BLOCK_V] of the context tokens `n`; zeros where MASKED and
    not n_mask."""
    token = block.to(tl.int64) * BLOCK_SIZE + n % BLOCK_SIZE
    if VALUE_DIM == HEAD_DIM:  # the same places
        v_stride = k_stride
    k = _load(k_ptr, token, n_mask, kv_head, k_stride, HEAD_DIM, BLOCK_D, MASKED)
    v = _load(v_ptr, token, n_mask, kv_head, v_stride, VALUE_DIM, BLOCK_V, MASKED)
    return k, v


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (1.0 + tl.exp2(x * 2.8853900817779268))


@triton.jit
def online_softmax(
    q, k, v, seen, log2_scale, log2_cap, top, total, acc,
    MASKED: tl.constexpr, FUSED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """One more block of KV; where MASKED, only what is `seen` counts.

    FUSED scales in the fma of the exponent: one instruction less for each score. It is for whom
    registers suffice: paged prefill took 1.06 of its time with it. A soft cap comes in between.
    """
    LATE: tl.constexpr = FUSED and not CAPPED
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if not LATE:
        scores = scores * log2_scale
    if CAPPED:
        scores = log2_cap * _tanh(scores / log2_cap)
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    if LATE:
        new_top = tl.maximum(top, tl.max(scores, 1) * log2_scale)
        weights = tl.exp2(scores * log2_scale - new_top[:, None])
    else:
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
    decay = tl.exp2(top - new_top)
    total = total * decay + tl.sum(weights, 1)
    # An fma, as multiply and add would become an accumulating dot: see paged_prefill.
    product = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    acc = tl.fma(acc, tl.broadcast_to(decay[:, None], acc.shape), product)
    return new_top, total, acc
