"""The sampler's tensors: the only place where the SamplingParams of a batch become tensors.

Rows are the items of a batch that sample, in batch order. Whatever no row asks for is None, so
the sampler skips it.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from multilora.batch import BatchItem
from multilora.request import SamplingParams
from multilora.sequence import Sequence

_MIN_TEMPERATURE = 1e-6  # as good as greedy; float32 logits divided by less would overflow
_TOP_P_CANDIDATES = 1024  # mostly enough; if not, the sampler sorts the whole row
_MASK32 = (1 << 32) - 1
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, eq=False)
class Penalties:
    """For R rows with a penalty: all their tokens (padded with vocab_size) and three factors."""

    rows: torch.Tensor  # int64 [R]
    token_ids: torch.Tensor  # int64 [R, L], prompt and output
    output_ids: torch.Tensor  # int64 [R, L], prompt tokens replaced by padding
    repetition: torch.Tensor  # float32 [R, 1]
    presence: torch.Tensor  # float32 [R, 1]
    frequency: torch.Tensor  # float32 [R, 1]


@dataclass(frozen=True, eq=False)
class Draws:
    """For D rows with a temperature: how to draw, and `keys` of the noise of (seed, position)."""

    rows: torch.Tensor  # int64 [D]
    temperature: torch.Tensor  # float32 [D, 1]
    min_p: torch.Tensor  # float32 [D, 1]
    top_p: torch.Tensor  # float32 [D, 1]
    top_k: torch.Tensor  # int64 [D, 1], 0 = off
    keys: torch.Tensor  # int32 [D, 2]
    candidates: int  # how many of the largest logits top_k and top_p look at
    has_top_p: bool


@dataclass(frozen=True, eq=False)
class SamplingInput:
    """`suppressed` int64 [2, M]: (row, token id) pairs that must not be picked. `num_logprobs`:
    the most any row asks for, None when no row asks."""

    suppressed: torch.Tensor | None
    penalties: Penalties | None
    draws: Draws | None
    num_logprobs: int | None


def build_sampling_input(
    items: Rows[BatchItem],
    device: torch.device | str,
    vocab_size: int,
    eos_token_ids: tuple[int, ...],
) -> SamplingInput:
    """The sampling parameters of `items`, one row each.

    ValueError when a row with a temperature has no seed.
    """
    sequences = [item.sequence for item in items]
    asked = [s.request.sampling.logprobs for s in sequences]
    return SamplingInput(
        suppressed=_suppressed(sequences, device, vocab_size, eos_token_ids),
        penalties=_penalties(sequences, device, vocab_size),
        draws=_draws(sequences, device, vocab_size),
        num_logprobs=max((count for count in asked if count is not None), default=None),
    )


def _suppressed(
    sequences: list[Sequence], device: torch.device | str, vocab_size: int, eos: tuple[int, ...]
) -> torch.Tensor | None:
    pairs = [
        (row, token)
        for row, s in enumerate(sequences)
        if s.num_output_tokens < s.request.sampling.min_tokens
        for token in eos
        if token < vocab_size
    ]
    return torch.tensor(pairs, dtype=torch.int64, device=device).T if pairs else None


def _penalties(
    sequences: list[Sequence], device: torch.device | str, vocab_size: int
) -> Penalties | None:
    rows = [row for row, s in enumerate(sequences) if _penalised(s)]
    if not rows:
        return None
    chosen = [sequences[row] for row in rows]
    token_ids = torch.full((len(rows), max(len(s.token_ids) for s in chosen)), vocab_size)
    output_ids = token_ids.clone()
    for row, s in enumerate(chosen):
        tokens, start = torch.tensor(s.token_ids), s.num_prompt_tokens
        token_ids[row, : len(tokens)] = tokens
        output_ids[row, start : len(tokens)] = tokens[start:]
    params = [s.request.sampling for s in chosen]
    factors = torch.tensor(
        [(p.repetition_penalty, p.presence_penalty, p.frequency_penalty) for p in params],
        dtype=torch.float32,
    )
    repetition, presence, frequency = factors.to(device).split(1, dim=1)
    return Penalties(
        rows=torch.tensor(rows, device=device),
        token_ids=token_ids.to(device),
        output_ids=output_ids.to(device),
        repetition=repetition,
        presence=presence,
        frequency=frequency,
    )


def _penalised(sequence: Sequence) -> bool:
    p = sequence.request.sampling
    return p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0


def _draws(sequences: list[Sequence], device: torch.device | str, vocab_size: int) -> Draws | None:
    rows = [row for row, s in enumerate(sequences) if not s.request.sampling.greedy]
    if not rows:
        return None
    params = [sequences[row].request.sampling for row in rows]
    top_k = [min(p.top_k, vocab_size) for p in params]
    lengths = [len(sequences[row].token_ids) for row in rows]
    keys = [noise_keys(p.seed, length) for p, length in zip(params, lengths, strict=True)]
    floats = torch.tensor(
        [(max(p.temperature, _MIN_TEMPERATURE), p.min_p, p.top_p) for p in params],
        dtype=torch.float32,
    )
    temperature, min_p, top_p = floats.to(device).split(1, dim=1)
    return Draws(
        rows=torch.tensor(rows, device=device),
        temperature=temperature,
        min_p=min_p,
        top_p=top_p,
        top_k=torch.tensor(top_k, device=device).unsqueeze(1),
        keys=torch.tensor(keys, dtype=torch.int32, device=device),
        candidates=max(map(_candidates, params)),
        has_top_p=any(p.top_p < 1 for p in params),
    )


def _candidates(params: SamplingParams) -> int:
    return params.top_k or (_TOP_P_CANDIDATES if params.top_p < 1 else 0)


def noise_keys(seed: int | None, position: int) -> tuple[int, int]:
    """Two int32 that name the noise of one draw; `position` is the index of the drawn token.

    The finaliser of SplitMix64 (Steele et al., 2014), once over the seed and once over both.
    """
    if seed is None:
        raise ValueError("a row with a temperature needs a seed")
    mixed = _splitmix(_splitmix(seed) + position)
    return _signed(mixed & _MASK32), _signed(mixed >> 32)


def _splitmix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value
