"""Device functions that decode and prefill share: one tile of queries, one block of KV.

    scores = q · Kᵀ · log2_scale                             fp32 [BLOCK_M, BLOCK_N], base 2
    top, total, acc ← the running maximum, the sum of 2^(scores - top), that of 2^(scores - top) · V

The online softmax of arXiv 2205.14135, over the blocks of arXiv 2309.06180. A row that has seen
nothing has total 0 and acc 0.
"""

from multilora_kernels.openai_triton import tl, triton


@triton.jit
def start_rows(BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """Top, total and acc of rows that have seen nothing."""
    # Finite, so that top - top is 0 also for a row that the mask hides from a whole block.
    top = tl.full((BLOCK_M,), -1e30, dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    return top, total, tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)


@triton.jit
def load_queries(
    q_ptr, row, count, kv_head, q_stride,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """q [BLOCK_M, BLOCK_D] of `count` queries from row `row` on, all heads of one KV head: tile row
    m is query m // GROUP, head m % GROUP. Also each one's query, and where it stands in q and out:
    row, columns, mask."""
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    query = m // GROUP
    place = (kv_head * GROUP + m % GROUP)[:, None] * HEAD_DIM + d[None, :]
    mask = (query < count)[:, None] & (d < HEAD_DIM)[None, :]
    rows = (row + query).to(tl.int64)[:, None]
    return tl.load(q_ptr + rows * q_stride + place, mask=mask, other=0.0), query, rows, place, mask


@triton.jit
def store_rows(out_ptr, acc, total, rows, out_stride, place, mask):
    """What the rows have seen, weighted: acc / total."""
    out = (acc / tl.where(total == 0.0, 1.0, total)[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows * out_stride + place, out, mask=mask)


@triton.jit
def load_blocks(table_ptr, n, n_mask, BLOCK_SIZE: tl.constexpr):
    """The cache blocks of the context tokens `n`; where not n_mask, block 0."""
    return tl.load(table_ptr + n // BLOCK_SIZE, mask=n_mask, other=0)


@triton.jit
def load_kv(
    k_ptr, v_ptr, block, n, n_mask, kv_column, cache_stride, d,
    HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """K and V [len(n), len(d)] of the context tokens `n`; zeros where MASKED and not n_mask."""
    slot = (block.to(tl.int64) * BLOCK_SIZE + n % BLOCK_SIZE) * cache_stride + kv_column
    mask = (d < HEAD_DIM)[None, :]
    if MASKED:
        mask = mask & n_mask[:, None]
    k = tl.load(k_ptr + slot[:, None] + d[None, :], mask=mask, other=0.0)
    v = tl.load(v_ptr + slot[:, None] + d[None, :], mask=mask, other=0.0)
    return k, v


@triton.jit
def online_softmax(
    q, k, v, seen, log2_scale, top, total, acc, MASKED: tl.constexpr, FUSED: tl.constexpr
):  # fmt: skip
    """One more block of KV; where MASKED, only what is `seen` counts.

    FUSED scales in the fma of the exponent: one instruction less for each score. It is for whom
    registers suffice: paged prefill took 1.06 of its time with it.
    """
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if not FUSED:
        scores = scores * log2_scale
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    if FUSED:
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
