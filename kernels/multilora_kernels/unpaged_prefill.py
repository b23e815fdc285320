"""Prefill of prompts without a cached prefix: their K and V are at hand unpaged, beside q.

    out[t, h] = softmax(scale · q[t, h] · Kᵀ) · V        over the tokens j <= i of t's sequence

q, out [T, heads, D] fp16 or bf16; sums fp32. Floor and tiles as those of paged_prefill. Hopper's
copy engine loads a block of rows in one instruction, where a gather of pages takes an address for
every 16 bytes and the registers that hold it. On an H200 rows took 0.73 of the time of pages for
2048 and 8192 tokens, and 0.97 and 1.16 of that of PyTorch's fastest kernel (cuDNN's), which takes
60 ms to prepare for every new length; PyTorch's for sequences of any lengths takes twice as long.
"""

import torch

from multilora_kernels.openai_triton import (
    INTERPRETED,
    has_tensor_descriptors,
    tensor_descriptor,
    tl,
    triton,
)
from multilora_kernels.paged_prefill import QueryTiles, prefill_options
from multilora_kernels.paged_tile import (
    LOG2_E,
    load_queries,
    online_softmax,
    start_rows,
    store_rows,
)


@triton.jit
def _attend(
    q, k_rows, v_rows, start_row, begin, end, position, column, log2_scale, top, total, acc,
    BLOCK_N: tl.constexpr, MASKED: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """The tokens from `begin` to `end`; where MASKED, each row those it may see."""
    for start in tl.range(begin, end, BLOCK_N, num_stages=1 if LAST else None):
        k = k_rows.load([start_row + start, column])
        v = v_rows.load([start_row + start, column])
        n = start + tl.arange(0, BLOCK_N)
        if LAST:  # rows behind it are another sequence's: a NaN there times 0 is one here
            v = tl.where((n < end)[:, None], v, tl.zeros_like(v))
        seen = n[None, :] <= position[:, None]
        top, total, acc = online_softmax(q, k, v, seen, log2_scale, 0.0, top, total, acc, MASKED,
                                         True, False)  # fmt: skip
    return top, total, acc


@triton.jit
def unpaged_prefill_kernel(
    q_ptr, k_rows, v_rows, out_ptr, tiles_ptr, cu_seqlens_ptr, log2_scale, q_stride, out_stride,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid (KV heads, query tiles); see load_queries."""
    kv_head, entry = tl.program_id(0), tiles_ptr + tl.program_id(1) * 4
    row, count = tl.load(entry), tl.load(entry + 1)
    if count == 0:
        return
    first, sequence = tl.load(entry + 2), tl.load(entry + 3)
    start_row = row - first
    q, query, head, rows, there = load_queries(q_ptr, row, count, kv_head, q_stride,
                                               GROUP, HEAD_DIM, BLOCK_M, BLOCK_D)  # fmt: skip
    top, total, acc = start_rows(BLOCK_M, BLOCK_D)
    position, column, end = first + query, kv_head * HEAD_DIM, first + count
    diagonal = (first + 1) // BLOCK_N * BLOCK_N
    # Of the blocks on the diagonal, those that end within the sequence.
    length = tl.load(cu_seqlens_ptr + sequence + 1) - start_row
    whole = max(diagonal, min(tl.cdiv(end, BLOCK_N), length // BLOCK_N) * BLOCK_N)
    top, total, acc = _attend(q, k_rows, v_rows, start_row, 0, diagonal, position, column,
                              log2_scale, top, total, acc, BLOCK_N, False, False)  # fmt: skip
    top, total, acc = _attend(q, k_rows, v_rows, start_row, diagonal, whole, position, column,
                              log2_scale, top, total, acc, BLOCK_N, True, False)  # fmt: skip
    top, total, acc = _attend(q, k_rows, v_rows, start_row, whole, end, position, column,
                              log2_scale, top, total, acc, BLOCK_N, True, True)  # fmt: skip
    store_rows(out_ptr, acc, total, head, rows, there, out_stride, HEAD_DIM)


def takes_rows(tensor: torch.Tensor, head_dim: int, sliding_window: int | None) -> bool:
    """Whether unpaged_prefill_gpu is for heads like these of `tensor`, and for its device."""
    fits = tensor.itemsize == 2 or INTERPRETED
    aligned = head_dim * tensor.itemsize % 16 == 0
    return fits and aligned and sliding_window is None and has_tensor_descriptors(tensor)


def unpaged_prefill_gpu(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tiles: QueryTiles,
    cu_seqlens_q: torch.Tensor,
    out: torch.Tensor,
    scale: float,
) -> None:
    """Write the rows of `out` that `tiles` name, none behind a cached prefix; see paged_attention.

    k, v [T, kv_heads, D], the heads of a row adjacent, rows at multiples of 16 bytes.
    """
    _, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    options = prefill_options(heads // kv_heads, head_dim, q.itemsize, tiles.queries)
    block = [options["BLOCK_N"], options["BLOCK_D"]]
    unpaged_prefill_kernel[(kv_heads, len(tiles.table))](
        q, tensor_descriptor(k.flatten(1), block), tensor_descriptor(v.flatten(1), block), out,
        tiles.table, cu_seqlens_q, scale * LOG2_E, q.stride(0), out.stride(0),
        GROUP=heads // kv_heads, HEAD_DIM=head_dim, **options,
    )  # fmt: skip
