"""The CPU path of paged attention: gather keys and values, then dense torch products.

Decode gathers [sequences, kv_heads, tokens, head_dim] and takes two batched products, which for
bfloat16 beat the fused attention of torch by 1.3 to 2 times; scores are float32 from the first
product on. Prefill uses the fused attention. Floor: the K and V of all contexts are read once.
"""

import torch
import torch.nn.functional as F

from multilora_kernels.paged_context import DecodeChunk, PagedContext, PrefillPart


def paged_attention_cpu(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    context: PagedContext,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """See paged_attention; rows of no sequence come out as zeros."""
    plan = context.plan(k_cache, sliding_window)
    out = torch.zeros(q.shape, dtype=q.dtype)
    for chunk in plan.decode:
        out[chunk.rows] = _decode(q[chunk.rows], k_cache, v_cache, chunk, scale)
    for part in plan.prefill:
        out[part.rows] = _prefill(q[part.rows], k_cache, v_cache, part, scale)
    return out


def _decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    chunk: DecodeChunk,
    scale: float,
) -> torch.Tensor:
    """One query per sequence: q [S, heads, D] → [S, heads, D]."""
    sequences, heads, head_dim = q.shape
    kv_heads = k_cache.shape[2]
    batch, group = sequences * kv_heads, heads // kv_heads
    k = k_cache.view(-1, head_dim).index_select(0, chunk.slots).view(batch, -1, head_dim)
    v = v_cache.view(-1, head_dim).index_select(0, chunk.slots).view(batch, -1, head_dim)
    scores = torch.bmm(q.reshape(batch, group, head_dim), k.transpose(1, 2)).float().mul_(scale)
    if chunk.mask is not None:
        scores.view(sequences, kv_heads, group, -1).add_(chunk.mask)
    weights = scores.softmax(-1).to(q.dtype)
    return torch.bmm(weights, v).view(sequences, heads, head_dim)


def _prefill(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    part: PrefillPart,
    scale: float,
) -> torch.Tensor:
    """One sequence: q [n, heads, D] → [n, heads, D]."""
    gathered = (cache.index_select(0, part.blocks).flatten(0, 1) for cache in (k_cache, v_cache))
    k, v = (tokens[part.tokens] for tokens in gathered)
    q, k, v = (rows.transpose(0, 1).unsqueeze(0) for rows in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=part.mask, is_causal=part.mask is None, scale=scale, enable_gqa=True
    )
    return out[0].transpose(0, 1)
