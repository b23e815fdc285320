"""Paged decode: the one new token of each sequence attends to its KV blocks, the context in splits.

    out[s, h] = softmax(scale · q[s, h] · Kᵀ) · V            over the seen tokens of sequence s
    split p:    (out_p, L_p),  L_p = log2 Σ 2^score          combine:  Σ 2^(L_p - L) · out_p,
                                                             L = log2 Σ 2^L_p

q, out [T, heads, D] fp16, bf16 or fp32; partial results fp32. Floor: K and V are read once,
2 · Σc · kv_heads · head_dim · itemsize bytes; splits add 8 · heads · D bytes each. So one program
takes all query heads of a KV head (up to 16 rows; mma.sync, as 16 rows are too few for wgmma), and
the context is split when sequences and KV heads alone do not fill the GPU (Flash-Decoding, 2023;
online softmax arXiv 2205.14135, paging arXiv 2309.06180).

The grid has a fixed number of splits, as a captured CUDA graph must; how long a split is comes from
the context length on the device. Splits beyond the context return at once; where one split is
all there is, it writes `out` itself and the combine returns at once.
"""

import torch

from multilora_kernels.openai_triton import next_power_of_2, num_programs, tl, triton
from multilora_kernels.paged_tile import load_blocks, load_kv, online_softmax, start_rows

LOG2_E = 1.4426950408889634
BLOCK_M = 16
MIN_SPLIT = 128  # tokens; shorter ones cost more in partial results than they win
MAX_SPLITS = 64
_BUFFER_BYTES = 64 << 10  # of K and V: three programs per multiprocessor on Hopper, one on Ada


@triton.jit
def _split_range(context, window, splits, BLOCK_N: tl.constexpr, MIN_SPLIT: tl.constexpr):
    """First token that is seen, first token and length of splits, number of splits not empty."""
    low = max(context - window, 0)
    first = low // BLOCK_N * BLOCK_N
    length = tl.cdiv(tl.cdiv(context - first, splits), BLOCK_N) * BLOCK_N
    length = max(length, MIN_SPLIT)
    return low, first, length, tl.cdiv(context - first, length)


@triton.jit(do_not_specialize=["table_stride"])
def paged_decode_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, partial_ptr, log_sum_ptr, cu_seqlens_ptr, context_lens_ptr,
    tables_ptr, log2_scale, window, q_stride, out_stride, cache_stride, table_stride,
    GROUP: tl.constexpr, TILES: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, MIN_SPLIT: tl.constexpr,
):  # fmt: skip
    """Grid (sequences, KV heads · tiles of a group, splits)."""
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1) // TILES, tl.program_id(2)
    row = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    new = tl.load(cu_seqlens_ptr + sequence + 1) - row
    context = tl.load(context_lens_ptr + sequence)
    low, first, length, used = _split_range(context, window, tl.num_programs(2), BLOCK_N, MIN_SPLIT)
    # A padding row has context 0 and no split; its first program writes zeros.
    if (new != 1) | (split >= max(used, 1)):
        return
    member = tl.program_id(1) % TILES * BLOCK_M + tl.arange(0, BLOCK_M)
    head, d = kv_head * GROUP + member, tl.arange(0, BLOCK_D)
    mask = (member < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    place = head[:, None] * HEAD_DIM + d[None, :]
    q = tl.load(q_ptr + row * q_stride + place, mask=mask, other=0.0)
    top, total, acc = start_rows(BLOCK_M, BLOCK_D)
    begin, table_ptr = first + split * length, tables_ptr + sequence * table_stride
    end = min(begin + length, context)
    n = begin + tl.arange(0, BLOCK_N)
    block = load_blocks(table_ptr, n, n < end, BLOCK_SIZE)
    for _ in range(begin, end, BLOCK_N):
        seen = (n >= low) & (n < end)
        k, v = load_kv(k_ptr, v_ptr, block, n, seen, kv_head * HEAD_DIM, cache_stride, d,
                       HEAD_DIM, BLOCK_SIZE, True)  # fmt: skip
        top, total, acc = online_softmax(q, k, v, seen[None, :], log2_scale, top, total, acc, True)
        n += BLOCK_N
        block = load_blocks(table_ptr, n, n < end, BLOCK_SIZE)
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    if used <= 1:
        tl.store(out_ptr + row * out_stride + place, acc.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        heads = tl.num_programs(1) // TILES * GROUP
        part = (sequence * heads + head) * tl.num_programs(2) + split
        tl.store(partial_ptr + part[:, None] * HEAD_DIM + d[None, :], acc, mask=mask)
        tl.store(log_sum_ptr + part, top + tl.log2(total), mask=member < GROUP)


@triton.jit(do_not_specialize=["splits"])
def combine_kernel(
    partial_ptr, log_sum_ptr, out_ptr, cu_seqlens_ptr, context_lens_ptr, window, splits, out_stride,
    HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
):  # fmt: skip
    """Grid (sequences, heads)."""
    sequence, head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    row = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    new = tl.load(cu_seqlens_ptr + sequence + 1) - row
    context = tl.load(context_lens_ptr + sequence)
    _, _, _, used = _split_range(context, window, splits, BLOCK_N, MIN_SPLIT)
    if (new != 1) | (used <= 1):
        return
    d = tl.arange(0, BLOCK_D)
    top, total = -1e30, 0.0
    acc = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for start in range(0, used, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        part = (sequence * heads + head) * splits + split
        log_sum = tl.load(log_sum_ptr + part, mask=split < used, other=float("-inf"))
        values = tl.load(
            partial_ptr + part[:, None] * HEAD_DIM + d[None, :],
            mask=(split < used)[:, None] & (d < HEAD_DIM)[None, :], other=0.0,
        )  # fmt: skip
        new_top = tl.maximum(top, tl.max(log_sum, 0))
        weights = tl.exp2(log_sum - new_top)
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.sum(weights, 0)
        acc = acc * decay + tl.sum(weights[:, None] * values, 0)
        top = new_top
    out = (acc / total).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * out_stride + head * HEAD_DIM + d, out, mask=d < HEAD_DIM)


def num_splits(programs: int, slots: int, tokens: int) -> int:
    """Splits of each context, when `programs` would run without and at most `tokens` are seen.

    About twice the `slots` in all: contexts differ in length, and what is empty costs little.
    """
    return max(1, min(-(-2 * slots // programs), -(-tokens // MIN_SPLIT), MAX_SPLITS))


def decode_options(head_dim: int, itemsize: int) -> dict[str, int]:
    """Block sizes and compile options, the same for both kernels where they share one."""
    block_d = max(16, next_power_of_2(head_dim))
    block_n = 32 if block_d * itemsize > 256 else 64
    buffers = _BUFFER_BYTES // (2 * block_n * block_d * itemsize)
    stages = 1 + max(1, min(3, buffers))  # the last one computes
    return {"BLOCK_D": block_d, "BLOCK_N": block_n, "num_stages": stages}


def decode_gpu(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    max_context_len: int,
    sliding_window: int | None,
    splits: int | None = None,
) -> None:
    """Write the rows of `out` of sequences with one new token; see paged_attention."""
    sequences, (_, heads, head_dim) = len(context_lens), q.shape
    block_size, kv_heads = k_cache.shape[1:3]
    tiles = -(-(heads // kv_heads) // BLOCK_M)
    window = sliding_window or 1 << 30
    programs, tokens = sequences * kv_heads * tiles, min(max_context_len, window)
    splits = splits or num_splits(programs, num_programs(q, 2), tokens)
    kept = (sequences, heads, splits if splits > 1 else 0)
    partial = torch.empty(*kept, head_dim, dtype=torch.float32, device=q.device)
    log_sum = torch.empty(kept, dtype=torch.float32, device=q.device)
    options = decode_options(head_dim, q.itemsize)
    paged_decode_kernel[(sequences, kv_heads * tiles, splits)](
        q, k_cache, v_cache, out, partial, log_sum, cu_seqlens_q, context_lens, block_tables,
        scale * LOG2_E, window, q.stride(0), out.stride(0), k_cache.stride(1),
        block_tables.stride(0), GROUP=heads // kv_heads, TILES=tiles, HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size, BLOCK_M=BLOCK_M, MIN_SPLIT=MIN_SPLIT,
        num_warps=4 if q.itemsize == 2 else 8, **options,  # fp32 operands lie in registers
    )  # fmt: skip
    if splits > 1:
        combine_kernel[(sequences, heads)](
            partial, log_sum, out, cu_seqlens_q, context_lens, window, splits, out.stride(0),
            HEAD_DIM=head_dim, BLOCK_S=16, MIN_SPLIT=MIN_SPLIT, num_warps=4,
            **options | {"num_stages": 1},
        )  # fmt: skip
