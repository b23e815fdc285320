"""Paged attention: new tokens of many sequences attend to their KV blocks, prefill and decode.

    out[t, h] = softmax(cap(scale · q[t, h] · Kᵀ)) · V   over the tokens j <= i of t's sequence

A sequence with n new tokens and context length c (new ones included) has its query m at position
i = c - n + m; with a sliding window w only j > i - w count. Query head h reads KV head
h // (heads / kv_heads). cap(s) = softcap · tanh(s / softcap) where there is a soft cap (Gemma 2,
arXiv 2408.00118); a sink of a head is one more score in the sum of its softmax, without a value
(arXiv 2309.17453, gpt-oss). Kernels: paged_decode for sequences with one new token, paged_prefill
or unpaged_prefill for those with more, each with its floor; a batch may mix them. CPU path:
paged_attention_cpu. Paging: arXiv 2309.06180.
"""

import torch

from multilora_kernels.openai_triton import uses_kernels
from multilora_kernels.paged_attention_cpu import paged_attention_cpu
from multilora_kernels.paged_context import PagedContext
from multilora_kernels.paged_decode import decode_gpu
from multilora_kernels.paged_prefill import QueryTiles, prefill_gpu
from multilora_kernels.paged_tile import Scores
from multilora_kernels.unpaged_prefill import unpaged_prefill_gpu


def paged_attention_reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """float64, one query and head at a time in plain words."""
    out = torch.zeros((*q.shape[:2], v_cache.shape[3]), dtype=torch.float64)
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
                if softcap is not None:
                    scores = softcap * (scores / softcap).tanh()
                if sinks is not None:
                    scores = torch.cat((scores, sinks[head].cpu().double()[None]))
                weights = scores.softmax(0)[: i + 1 - low]
                out[row, head] = weights @ v[low : i + 1, kv_head]
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
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    context: PagedContext | None = None,
    has_decode: bool = True,
    tiles: QueryTiles | None = None,
    rows: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """q [T, heads, D] → [T, heads, V]; caches [blocks, block_size, kv_heads, D] (V in v_cache's),
    contiguous.

    cu_seqlens_q int32 [S + 1], context_lens int32 [S], block_tables int32 [S, max_blocks], all on
    q's device; heads a multiple of kv_heads, block_size a power of two, q of the caches' dtype with
    its heads adjacent. `sinks` [heads], of any float dtype.

    A context length of 0 marks a padding row of a captured CUDA graph: its row comes out as zeros.
    Rows of no sequence are not set. `has_decode` is false where no sequence has one new token, and
    `tiles` are the queries of sequences that have more, None where none has: kernels that need not
    start. `rows` are K and V of the new tokens, [T, kv_heads, D] each, which are in the caches too:
    a faster way to them where takes_rows, there is no soft cap and no sink, and none of the
    sequences with several new tokens has more context. `context` is the one of this forward pass;
    without it every layer works it out again. A CPU needs neither tiles nor rows.
    """
    context = context or PagedContext(cu_seqlens_q, context_lens, block_tables)
    if not uses_kernels(q):
        return paged_attention_cpu(
            q, k_cache, v_cache, context, scale, sliding_window, softcap, sinks
        )
    out = torch.empty((*q.shape[:2], v_cache.shape[3]), dtype=q.dtype, device=q.device)
    scores = Scores(scale, softcap, sinks)
    if has_decode:
        work = context.decode_work(q, k_cache.shape[2], sliding_window)
        decode_gpu(q, k_cache, v_cache, cu_seqlens_q, block_tables, out, scores, work)
    if tiles is not None and len(tiles.table):
        if rows is not None:
            unpaged_prefill_gpu(q, *rows, tiles, cu_seqlens_q, out, scale)
        else:
            prefill_gpu(q, k_cache, v_cache, tiles, block_tables, out, scores, sliding_window)
    return out
