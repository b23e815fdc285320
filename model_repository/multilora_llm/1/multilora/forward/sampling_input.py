"""The sampler's tensors: the only place where the SamplingParams of a batch become tensors.

Rows are the items of a batch that sample, in batch order. Whatever no row asks for is None, so
the sampler skips it.
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from multilora.forward.staging import Handle, StagingBuffer
from multilora.forward.step_input import LastPass, add_segments, batch_segments
from multilora.scheduling.batch import Batch, BatchItem
from multilora_api.sampling import SamplingParams
from multilora_kernels.draws import Draws
from multilora_kernels.segments import LoRASegments

_MIN_TEMPERATURE = 1e-6  # as good as greedy; float32 logits divided by less would overflow
_PROMPT_ROWS_AT_ONCE = 128  # as much memory as drawing for 64 rows may take
_TOP_P_CANDIDATES = 1024  # mostly enough; if not, the CPU path sorts the whole row
_Pairs = list[tuple[BatchItem, SamplingParams]]


@dataclass(frozen=True, eq=False)
class Penalties:
    """For R rows with a penalty: all their tokens (padded with vocab_size) and three factors."""

    rows: torch.Tensor  # int64 [R]
    token_ids: torch.Tensor  # int64 [R, L], prompt and output
    output_ids: torch.Tensor  # int64 [R, L], prompt tokens replaced by padding
    repetition: torch.Tensor  # float32 [R, 1]
    presence: torch.Tensor  # float32 [R, 1]
    frequency: torch.Tensor  # float32 [R, 1]


class Biases(NamedTuple):
    """What is added to single logits."""

    entries: torch.Tensor  # int64 [2, M], (row, token id) pairs, each once
    values: torch.Tensor  # float32 [M]


class TokenMasks(NamedTuple):
    """For G rows with a grammar or allowed_token_ids: the tokens that may be picked."""

    rows: torch.Tensor  # int64 [G]
    bits: torch.Tensor  # uint8 [G, ceil(V / 8)], as TokenMatcher.allowed


class Typical(NamedTuple):
    """For R rows that draw with a typical_p."""

    rows: torch.Tensor  # int64 [R]
    temperature: torch.Tensor  # float32 [R, 1]
    mass: torch.Tensor  # float32 [R, 1], typical_p


@dataclass(frozen=True, eq=False)
class SamplingTensors:
    """`suppressed` int64 [2, M]: (row, token id) pairs that must not be picked. `num_logprobs`:
    the most any row asks for, None when no row asks."""

    biases: Biases | None
    suppressed: torch.Tensor | None
    masks: TokenMasks | None
    typical: Typical | None
    penalties: Penalties | None
    draws: Draws | None
    num_logprobs: int | None


def add_sampling_tensors(
    items: Rows[BatchItem],
    staging: StagingBuffer,
    vocab_size: int,
    eos_token_ids: tuple[int, ...],
    last: LastPass,
) -> Callable[[], SamplingTensors]:
    """Add the sampling parameters of `items`, one row each; the result is for after staging.send().

    `last` has the tokens in flight. ValueError when a row with a temperature has no seed.
    """
    pairs = [(item, item.sequence.request.sampling) for item in items]
    biases = _add_biases(pairs, staging)
    suppressed = _add_suppressed(pairs, staging, vocab_size, eos_token_ids)
    masks = _add_masks(pairs, staging, vocab_size, eos_token_ids)
    typical = _add_typical(pairs, staging)
    penalties = _add_penalties(pairs, staging, vocab_size, last)
    draws = _add_draws(pairs, staging, vocab_size)
    asked = [p.logprobs for _, p in pairs if p.logprobs is not None]
    return lambda: SamplingTensors(
        biases=biases() if biases else None,
        suppressed=suppressed() if suppressed else None,
        masks=masks() if masks else None,
        typical=typical() if typical else None,
        penalties=penalties() if penalties else None,
        draws=draws() if draws else None,
        num_logprobs=max(asked, default=None),
    )


class PromptRows(NamedTuple):
    """R rows of a pass whose logits tell of the next token of a prompt: as many as may be computed
    together. `num_logprobs`: how many likeliest tokens any row of the pass asks for."""

    rows: torch.Tensor  # int64 [R], ascending
    token_ids: torch.Tensor  # int64 [R], the next tokens
    segments: LoRASegments | None  # of the rows, where adapters act on those that sample
    num_logprobs: int


def add_prompt_rows(
    batch: Batch,
    staging: StagingBuffer,
    device: torch.device,
    dtype: torch.dtype,
    with_segments: bool,
) -> Callable[[], list[PromptRows]]:
    """Add those of a pass, in the order of its items."""
    rows, token_ids, asked = list[int](), list[int](), [0]
    first = 0  # row of the item
    for item in batch.items:
        if item.scored:
            before = first - item.start - 1
            rows += (before + place for place in item.scored)
            token_ids += item.sequence.token_ids[item.scored.start : item.scored.stop]
            asked.append(item.sequence.request.sampling.prompt_logprobs or 0)
        first += item.num_new_tokens
    parts: list[Callable[[], PromptRows]] = []
    for start in range(0, len(rows), _PROMPT_ROWS_AT_ONCE):
        some = slice(start, start + _PROMPT_ROWS_AT_ONCE)
        own, ids = np.array(rows[some]), np.array(token_ids[some])
        of_adapters = batch_segments(batch, own) if with_segments else ()
        segments = add_segments(of_adapters, len(own), staging, device, dtype, few=True)
        parts.append(_part(staging.add(own), staging.add(ids), segments, max(asked)))
    return lambda: [part() for part in parts]


def _part(
    rows: Handle, token_ids: Handle, segments: Callable[[], LoRASegments | None], most: int
) -> Callable[[], PromptRows]:
    return lambda: PromptRows(rows(), token_ids(), segments(), most)


def _add_biases(pairs: _Pairs, staging: StagingBuffer) -> Callable[[], Biases] | None:
    entries = [(row, *entry) for row, (_, p) in enumerate(pairs) for entry in p.logit_bias]
    if not entries:
        return None
    rows, tokens, values = zip(*entries, strict=True)
    index = staging.add(np.array([rows, tokens]))
    added = staging.add(np.array(values, dtype=np.float32))
    return lambda: Biases(index(), added())


def _add_masks(
    pairs: _Pairs, staging: StagingBuffer, vocab_size: int, eos_token_ids: tuple[int, ...]
) -> Callable[[], TokenMasks] | None:
    rows = [row for row, (item, _) in enumerate(pairs) if _is_bound(item)]
    if not rows:
        return None
    masks = [_allowed(*pairs[row], vocab_size, eos_token_ids) for row in rows]
    bits, row_ids = staging.add(np.stack(masks)), staging.add(np.array(rows))
    return lambda: TokenMasks(row_ids(), bits())


def _is_bound(item: BatchItem) -> bool:
    """Whether few tokens may come, so that one of them must."""
    sequence = item.sequence
    return bool(sequence.matcher or sequence.request.sampling.allowed_token_ids)


def _allowed(
    item: BatchItem, p: SamplingParams, vocab_size: int, eos_token_ids: tuple[int, ...]
) -> np.ndarray:
    """The bits of a row. The adapter's own end tokens may come where a grammar lets one of the base
    model's come. Where a grammar is at its end, or no other token is allowed, what is suppressed
    may come, also below min_tokens."""
    matcher = item.sequence.matcher
    given = matcher.allowed() if matcher else item.sequence.request.allowed_bits
    bits = np.zeros((vocab_size + 7) // 8, dtype=np.uint8)
    bits[: len(given)] = np.frombuffer(given, dtype=np.uint8)[: len(bits)]
    if vocab_size % 8:
        bits[-1] &= (1 << vocab_size % 8) - 1
    if matcher and (own := [token for token in item.sequence.own_end_ids if token < vocab_size]):
        ends = (token for token in eos_token_ids if token < vocab_size)
        if any(bits[token >> 3] >> (token & 7) & 1 for token in ends):
            for token in own:
                bits[token >> 3] |= 1 << (token & 7)
        else:
            bits = _without(own, bits)
    return _without(_suppressed(item, p, vocab_size, eos_token_ids), bits)


def _suppressed(
    item: BatchItem, p: SamplingParams, vocab_size: int, eos_token_ids: tuple[int, ...]
) -> set[int]:
    """The tokens that must not come now as long as there are others."""
    tokens: set[int] = set()
    below = item.num_output_tokens < p.min_tokens
    if below or (p.ignore_eos and item.sequence.matcher):
        tokens.update(eos_token_ids, item.sequence.own_end_ids)
    if below:
        tokens.update(p.stop_token_ids)
    sequence = item.sequence
    for *start, last in sequence.request.banned:
        since = max(sequence.num_prompt_tokens, item.end - len(start))
        if sequence.token_ids[since : item.end] == start:
            tokens.add(last)
    return {token for token in tokens if token < vocab_size}


def _without(tokens: Iterable[int], bits: np.ndarray) -> np.ndarray:
    """`bits` without those of `tokens`, unless nothing else is left."""
    going_on = bits.copy()
    for token in tokens:
        going_on[token >> 3] &= 255 ^ (1 << (token & 7))
    return going_on if going_on.any() else bits


def _add_typical(pairs: _Pairs, staging: StagingBuffer) -> Callable[[], Typical] | None:
    rows = [row for row, (_, p) in enumerate(pairs) if not p.greedy and p.typical_p < 1]
    if not rows:
        return None
    temperature = [max(pairs[row][1].temperature, _MIN_TEMPERATURE) for row in rows]
    mass = [pairs[row][1].typical_p for row in rows]
    columns = [np.array(x, dtype=np.float32)[:, None] for x in (temperature, mass)]
    handles = [staging.add(array) for array in (np.array(rows), *columns)]
    return lambda: Typical(*(handle() for handle in handles))


def _add_suppressed(
    pairs: _Pairs, staging: StagingBuffer, vocab_size: int, eos_token_ids: tuple[int, ...]
) -> Callable[[], torch.Tensor] | None:
    places = [
        (row, token)
        for row, (item, p) in enumerate(pairs)
        if (p.min_tokens or item.sequence.request.banned) and not _is_bound(item)
        for token in _suppressed(item, p, vocab_size, eos_token_ids)
    ]
    return staging.add(np.array(places).T.copy()) if places else None


def _add_penalties(
    pairs: _Pairs, staging: StagingBuffer, vocab_size: int, last: LastPass
) -> Callable[[], Penalties] | None:
    rows = [row for row, (_, p) in enumerate(pairs) if _penalises(p)]
    if not rows:
        return None
    width = max(pairs[row][0].end for row in rows)
    tokens = np.full((2, len(rows), width), vocab_size)
    for index, row in enumerate(rows):
        item = pairs[row][0]
        start, count = item.sequence.num_prompt_tokens, item.end - item.is_late
        tokens[0, index, :count] = item.sequence.token_ids[:count]
        tokens[1, index, start:count] = tokens[0, index, start:count]
    params = [pairs[row][1] for row in rows]
    factors = [
        [p.repetition_penalty for p in params],
        [p.presence_penalty for p in params],
        [p.frequency_penalty for p in params],
    ]
    arrays = (np.array(rows), tokens, np.array(factors, dtype=np.float32)[:, :, None])
    row_ids, both, three = (staging.add(array) for array in arrays)
    late = [(index, item) for index, row in enumerate(rows) if (item := pairs[row][0]).is_late]
    if not late:
        return lambda: Penalties(row_ids(), *both(), *three())
    places = staging.add(np.array([(index, item.end - 1) for index, item in late]).T.copy())
    late_tokens = last.add([item for _, item in late], staging)

    def with_late_tokens() -> Penalties:
        index, column = places()
        both()[:, index, column] = late_tokens()
        return Penalties(row_ids(), *both(), *three())

    return with_late_tokens


def _penalises(p: SamplingParams) -> bool:
    return p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0


def _add_draws(
    pairs: _Pairs, staging: StagingBuffer, vocab_size: int
) -> Callable[[], Draws] | None:
    rows = [row for row, (_, p) in enumerate(pairs) if not p.greedy]
    if not rows:
        return None
    chosen = [pairs[row] for row in rows]
    positions = [item.end for item, _ in chosen]
    seeds = [p.seed for _, p in chosen]
    temperature = np.array([p.temperature for _, p in chosen]).clip(min=_MIN_TEMPERATURE)
    min_p = np.array([p.min_p for _, p in chosen])
    top_p = np.array([p.top_p for _, p in chosen])
    top_k = np.array([min(p.top_k, vocab_size) for _, p in chosen])
    candidates = np.where(top_k > 0, top_k, np.where(top_p < 1, _TOP_P_CANDIDATES, 0))
    arrays = (
        np.array(rows), *(x.astype(np.float32)[:, None] for x in (temperature, min_p, top_p)),
        top_k[:, None], noise_keys(seeds, positions),
    )  # fmt: skip
    # One by one: a tensor inside another may lie at any address, and OpenAI Triton compiles a
    # kernel anew for an address that is less aligned.
    handles = [staging.add(array) for array in arrays]
    most, has_top_p = int(candidates.max()), bool(top_p.min() < 1)
    return lambda: Draws._make([*(handle() for handle in handles), most, has_top_p])


def noise_keys(seeds: list[int | None], positions: list[int]) -> np.ndarray:
    """int32 [D, 2]: names of the noise of D draws; a position is the index of the drawn token.

    The finaliser of SplitMix64 (Steele et al., 2014), once over the seed and once over both.
    """
    if None in seeds:
        raise ValueError("a row with a temperature needs a seed")
    mixed = _splitmix(np.array(seeds, dtype=np.uint64))
    mixed = _splitmix(mixed + np.array(positions, dtype=np.uint64))
    return mixed.view(np.int32).reshape(-1, 2)  # the low half first, as hosts store it


def _splitmix(values: np.ndarray) -> np.ndarray:
    """On uint64, which wraps around."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
