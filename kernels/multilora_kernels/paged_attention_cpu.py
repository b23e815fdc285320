"""The CPU path of paged attention: gather keys and values, then dense torch products.

Both use the fused attention of torch where it computes what is asked for, decode in float32
whatever the dtype: for products with one query a 16-bit type is a burden. Measured on 2 cores with
AVX2 for 4 sequences of 160 tokens with 12 heads of 64: 0.60 ms in float32 from a bfloat16 cache,
1.21 in bfloat16; two batched products 0.65 and 1.09. Floor: the K and V of all contexts are read
once.
"""

import torch
import torch.nn.functional as F

from multilora_kernels.paged_context import DecodeChunk, PagedContext, PrefillPart

_SCORES = 1 << 22  # numbers of a slice of queries, where prefill has scores at hand


def paged_attention_cpu(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    context: PagedContext,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """See paged_attention; rows of no sequence come out as zeros."""
    plan = context.plan(k_cache, sliding_window)
    out = torch.zeros((*q.shape[:2], v_cache.shape[3]), dtype=q.dtype)
    for chunk in plan.decode:
        out[chunk.rows] = _decode(q[chunk.rows], k_cache, v_cache, chunk, scale, softcap, sinks)
    for part in plan.prefill:
        out[part.rows] = _prefill(q[part.rows], k_cache, v_cache, part, scale, softcap, sinks)
    return out


def _decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    chunk: DecodeChunk,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One query per sequence: q [S, heads, D] → [S, heads, V]."""
    k, v = (_tokens(cache, chunk.slots, len(q)) for cache in (k_cache, v_cache))
    if softcap is None and sinks is None:
        out = F.scaled_dot_product_attention(
            q.float().unsqueeze(2), k, v, attn_mask=chunk.mask, scale=scale, enable_gqa=True
        )
        return out.squeeze(2).to(q.dtype)
    grouped = q.float().unflatten(1, (k.shape[1], -1))
    scores = _capped(torch.matmul(grouped, k.transpose(2, 3)).mul_(scale), softcap)
    if chunk.mask is not None:
        scores += chunk.mask
    if sinks is not None:
        sinks = sinks.view(1, *grouped.shape[1:3]).expand(len(q), -1, -1)
    return torch.matmul(_weights(scores, sinks), v).flatten(1, 2).to(q.dtype)


def _tokens(cache: torch.Tensor, slots: torch.Tensor, sequences: int) -> torch.Tensor:
    """float32 [sequences, kv_heads, tokens, width]. The cache is read by whole tokens: memory is
    slow to give many short rows."""
    tokens = cache.view(-1, cache[0, 0].numel()).index_select(0, slots).float()
    return tokens.view(sequences, -1, *cache.shape[2:]).transpose(1, 2)


def _prefill(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    part: PrefillPart,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One sequence: q [n, heads, D] → [n, heads, V]."""
    gathered = (cache.index_select(0, part.blocks).flatten(0, 1) for cache in (k_cache, v_cache))
    k, v = (tokens[part.tokens] for tokens in gathered)
    if softcap is not None or sinks is not None:
        return _prefill_scores(q, k, v, part.mask, scale, softcap, sinks)
    q, k, v = (rows.transpose(0, 1).unsqueeze(0) for rows in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=part.mask, is_causal=part.mask is None, scale=scale, enable_gqa=True
    )
    return out[0].transpose(0, 1)


def _prefill_scores(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """q [n, heads, D], k [tokens, kv_heads, D], v [tokens, kv_heads, V] → [n, heads, V], a slice of
    queries at a time."""
    new, heads, head_dim = q.shape
    tokens, kv_heads, value_dim = v.shape
    group, out = heads // kv_heads, q.new_empty(new, heads, value_dim)
    if mask is None:
        mask = torch.ones(new, tokens, dtype=torch.bool).tril(tokens - new)
    k, v = k.permute(1, 2, 0), v.transpose(0, 1)
    queries = q.unflatten(1, (kv_heads, group))
    if sinks is not None:
        sinks = sinks.view(kv_heads, 1, group)
    step = max(1, _SCORES // (heads * tokens))
    for start in range(0, new, step):
        some = queries[start : start + step].permute(1, 0, 2, 3)
        count = some.shape[1]
        scores = torch.bmm(some.reshape(kv_heads, count * group, head_dim), k).float().mul_(scale)
        scores = _capped(scores, softcap).view(kv_heads, count, group, tokens)
        scores.masked_fill_(~mask[start : start + step, None, :], float("-inf"))
        own = None if sinks is None else sinks.expand(-1, count, -1)
        weights = _weights(scores, own).to(q.dtype).reshape(kv_heads, -1, tokens)
        seen = torch.bmm(weights, v).view(kv_heads, count, group, value_dim)
        out[start : start + step] = seen.transpose(0, 1).reshape(count, heads, value_dim)
    return out


def _capped(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)


def _weights(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """The softmax over the last dimension, with one more term where there is a sink."""
    if sinks is None:
        return scores.softmax(-1)
    return torch.cat((scores, sinks.float()[..., None]), -1).softmax(-1)[..., :-1]
