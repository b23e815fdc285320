"""PagedContext: what the layers of one forward pass share, worked out once.

On a GPU that is how decode splits the contexts. On a CPU it is which cache rows to gather, and how
to batch them. Sequences with one new token are gathered in chunks of similar length: small enough
to stay in a core's cache, padded to the longest of the chunk. Sequences with more are taken one by
one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from multilora_kernels.paged_decode import DecodeWork, decode_work

_CHUNK_BYTES = 1 << 21  # of the keys of one chunk in float32; as many of values
_SLACK = 32  # tokens by which lengths in a chunk may always differ; beyond, by a factor of two


class DecodeChunk(NamedTuple):
    """S sequences with one new token each, N tokens seen by the one that sees the most."""

    rows: slice | torch.Tensor  # of q: int64 [S] when they are not neighbours
    slots: torch.Tensor  # int64 [S * N]
    mask: torch.Tensor | None  # float32 [S, 1, 1, N], 0 or -inf; None: all see N tokens


class PrefillPart(NamedTuple):
    """One sequence with several new tokens; sees `tokens` of the tokens in `blocks`."""

    rows: slice
    blocks: torch.Tensor  # int64
    tokens: slice
    mask: torch.Tensor | None  # bool [new, tokens]; None: causal, nothing was cached before


class Plan(NamedTuple):
    decode: tuple[DecodeChunk, ...]
    prefill: tuple[PrefillPart, ...]


class PagedContext:
    """Built once per forward pass from the arguments of paged_attention, which it must match.

    It reads them when a layer first asks, so building one costs nothing where nobody asks.
    """

    def __init__(
        self, cu_seqlens_q: torch.Tensor, context_lens: torch.Tensor, block_tables: torch.Tensor
    ) -> None:
        self._lengths = (cu_seqlens_q, context_lens)
        self._tables = block_tables
        self._plans: dict[tuple[torch.Size, torch.dtype, int | None], Plan] = {}
        self._works: dict[int | None, DecodeWork] = {}

    def decode_work(self, q: torch.Tensor, kv_heads: int, window: int | None) -> DecodeWork:
        """On a GPU, for layers with the same sliding window; all have queries shaped as `q`."""
        if window not in self._works:
            self._works[window] = decode_work(q, kv_heads, *self._lengths, window)
        return self._works[window]

    def plan(self, cache: torch.Tensor, window: int | None) -> Plan:
        """For a cache [blocks, block_size, kv_heads, head_dim] and a sliding window."""
        key = (cache.shape, cache.dtype, window)
        if key not in self._plans:
            self._plans[key] = self._make(cache, window)
        return self._plans[key]

    def _make(self, cache: torch.Tensor, window: int | None) -> Plan:
        starts, contexts = (lengths.tolist() for lengths in self._lengths)
        block_size, kv_heads, head_dim = cache.shape[1:]
        limit = _CHUNK_BYTES // (kv_heads * head_dim * torch.float32.itemsize)
        seen = {
            s: min(context, window or context)
            for s, context in enumerate(contexts)
            if starts[s + 1] - starts[s] == 1
        }
        tables = self._tables.long()
        decode = tuple(
            _decode_chunk(chunk, starts, contexts, seen, tables, block_size)
            for chunk in _chunks(seen, limit)
        )
        prefill = tuple(
            _prefill_part(slice(starts[s], starts[s + 1]), context, tables[s], block_size, window)
            for s, context in enumerate(contexts)
            if starts[s + 1] - starts[s] > 1
        )
        return Plan(decode, prefill)


def _chunks(seen: dict[int, int], limit: int) -> list[list[int]]:
    """Sequences by length; a chunk holds at most `limit` tokens, padding included, or one."""
    chunks: list[list[int]] = []
    for s in sorted(seen, key=lambda s: seen[s]):
        if chunks:
            shortest, size = seen[chunks[-1][0]], (len(chunks[-1]) + 1) * seen[s]
            if size <= limit and seen[s] <= max(2 * shortest, shortest + _SLACK):
                chunks[-1].append(s)
                continue
        chunks.append([s])
    return [sorted(chunk) for chunk in chunks]


def _decode_chunk(
    chunk: Sequence[int],
    starts: Sequence[int],
    contexts: Sequence[int],
    seen: dict[int, int],
    tables: torch.Tensor,
    block_size: int,
) -> DecodeChunk:
    rows = [starts[s] for s in chunk]
    counts = torch.tensor([seen[s] for s in chunk])[:, None]
    first = torch.tensor([contexts[s] for s in chunk])[:, None] - counts
    longest = max(seen[s] for s in chunk)
    column = torch.arange(longest)
    # Padding repeats the last token: its values are finite and the mask makes their weight 0.
    token = first + torch.minimum(column, counts - 1)
    slots = tables[list(chunk)].gather(1, token // block_size) * block_size + token % block_size
    mask = None
    if any(seen[s] < longest for s in chunk):
        mask = torch.zeros(len(chunk), 1, 1, longest)
        mask.masked_fill_((column >= counts)[:, None, None, :], float("-inf"))
    neighbours = rows == list(range(rows[0], rows[0] + len(rows)))
    return DecodeChunk(
        slice(rows[0], rows[0] + len(rows)) if neighbours else torch.tensor(rows),
        slots.flatten(),
        mask,
    )


def _prefill_part(
    rows: slice, context: int, table: torch.Tensor, block_size: int, window: int | None
) -> PrefillPart:
    cached = context - (rows.stop - rows.start)
    first = 0 if window is None else max(0, cached - window + 1)
    block = first // block_size
    tokens = slice(first - block * block_size, context - block * block_size)
    blocks = table[block : -(-context // block_size)]
    if cached == 0 and (window is None or context <= window):
        return PrefillPart(rows, blocks, tokens, None)
    position = torch.arange(cached, context)[:, None]
    token = torch.arange(first, context)
    mask = token <= position
    if window is not None:
        mask &= token > position - window
    return PrefillPart(rows, blocks, tokens, mask)
