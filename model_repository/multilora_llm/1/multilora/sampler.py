"""From logits to tokens. One row is one sequence; rows never influence each other.

Order: logprobs are read off the untouched logits; then end-of-sequence tokens are suppressed while
below min_tokens, then penalties; greedy rows take the largest logit; the others divide by the
temperature, drop what min_p, top_k and top_p (in this order, each on what the one before left)
rule out, and draw. Tokens as likely as the last one that top_k or top_p keeps are kept too, so
the outcome never depends on a sorting order.

A draw is a race: token t wins with the smallest E_t / p_t, E_t ~ Exp(1). E_t is a hash of (seed,
position, t) alone: a seed gives the same tokens in any batch, after a preemption and on any device
(as far as the logits agree).
"""

from dataclasses import dataclass

import torch

from multilora.sampling_input import Draws, Penalties, SamplingInput, build_sampling_input

__all__ = ["Sampled", "SamplingInput", "build_sampling_input", "sample"]

_CHUNK = 1 << 18  # numbers drawn at once on a CPU: they should stay in its cache


@dataclass(frozen=True, eq=False)
class Sampled:
    """`logprobs` of the picked tokens are None when no row asked; the K most likely, best first,
    are None when no row asked for more than the picked one."""

    token_ids: torch.Tensor  # int64 [N]
    logprobs: torch.Tensor | None  # float32 [N]
    top_ids: torch.Tensor | None  # int64 [N, K]
    top_logprobs: torch.Tensor | None  # float32 [N, K]


def sample(logits: torch.Tensor, inputs: SamplingInput) -> Sampled:
    """Pick one token per row of `logits` float32 [N, V], which stay as they are."""
    adjusted = logits
    if inputs.suppressed is not None or inputs.penalties is not None:
        adjusted = logits.clone()
    if inputs.suppressed is not None:
        adjusted[inputs.suppressed[0], inputs.suppressed[1]] = -torch.inf
    if inputs.penalties is not None:
        _penalise(adjusted, inputs.penalties)
    token_ids = adjusted.argmax(dim=-1)
    if inputs.draws is not None:
        token_ids[inputs.draws.rows] = _draw(adjusted[inputs.draws.rows], inputs.draws)
    return _report(logits, token_ids, inputs.num_logprobs)


def _report(logits: torch.Tensor, token_ids: torch.Tensor, count: int | None) -> Sampled:
    if count is None:
        return Sampled(token_ids, None, None, None)
    total = logits.logsumexp(dim=-1, keepdim=True)
    logprobs = (logits.gather(1, token_ids.unsqueeze(1)) - total).squeeze(1)
    if count == 0:
        return Sampled(token_ids, logprobs, None, None)
    top, top_ids = logits.topk(min(count, logits.shape[1]), dim=-1)
    return Sampled(token_ids, logprobs, top_ids, top - total)


def _penalise(logits: torch.Tensor, penalties: Penalties) -> None:
    """In place: seen tokens are divided (negative: multiplied) by the repetition penalty
    (arXiv:1909.05858); output tokens lose presence + frequency * occurrences (OpenAI's API)."""
    rows = logits[penalties.rows]
    padded = rows.new_zeros(rows.shape[0], rows.shape[1] + 1)
    seen = padded.bool().scatter_(1, penalties.token_ids, True)[:, :-1]
    counts = padded.scatter_add_(
        1, penalties.output_ids, torch.ones_like(penalties.output_ids, dtype=padded.dtype)
    )[:, :-1]
    repeated = torch.where(rows > 0, rows / penalties.repetition, rows * penalties.repetition)
    rows = torch.where(seen, repeated, rows)
    rows -= penalties.presence * (counts > 0) + penalties.frequency * counts
    logits[penalties.rows] = rows


def _draw(logits: torch.Tensor, draws: Draws) -> torch.Tensor:
    """logits float32 [D, V] → token ids int64 [D]."""
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / draws.temperature
    scaled.masked_fill_(scaled < _threshold(scaled, draws), -torch.inf)
    tokens = _mix(torch.arange(scaled.shape[1], dtype=torch.int32, device=scaled.device))
    step = len(scaled) if scaled.is_cuda else max(1, _CHUNK // scaled.shape[1])
    parts = zip(scaled.split(step), draws.keys.split(step), strict=True)
    return torch.cat([_race(rows, keys, tokens) for rows, keys in parts])


def _threshold(scaled: torch.Tensor, draws: Draws) -> torch.Tensor:
    """The smallest value that min_p, top_k and top_p all keep, float32 [D, 1]; the maximum is 0."""
    floor = draws.min_p.log()
    if not draws.candidates:
        return floor
    vocab_size = scaled.shape[1]
    values = scaled.topk(min(draws.candidates, vocab_size), dim=-1).values
    kth = values.gather(1, (draws.top_k - 1).clamp(min=0))
    floor = torch.where(draws.top_k > 0, floor.maximum(kth), floor)
    if not draws.has_top_p:
        return floor
    total = scaled.masked_fill(scaled < floor, -torch.inf).logsumexp(dim=-1, keepdim=True)
    mass = _mass(values, floor, total)
    reached = (mass[:, -1:] >= draws.top_p) | (values[:, -1:] < floor) | (draws.top_p >= 1)
    if values.shape[1] < vocab_size and not reached.all():
        values = scaled.sort(dim=-1, descending=True).values
        mass = _mass(values, floor, total)
    # Token i stays while those before it have less than top_p together.
    last = (mass[:, :-1] < draws.top_p).sum(dim=-1, keepdim=True)
    return torch.where(draws.top_p < 1, floor.maximum(values.gather(1, last)), floor)


def _mass(values: torch.Tensor, floor: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    return (values - total).exp().masked_fill(values < floor, 0).cumsum(dim=-1)


def _race(scaled: torch.Tensor, keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """argmin of E_t / p_t = argmax of scaled_t - log(E_t), int64 [D]; `tokens` int32 [V] hashed."""
    noise = _mix(tokens ^ keys[:, :1], keys[:, 1:])
    # 31 bits → (0, 1); the fine end near 0 becomes the small E, which decide the race.
    uniform = ((noise & 0x7FFFFFFF).float() + 0.5) * 2.0**-31
    return (scaled - (-torch.log1p(-uniform.clamp(max=1 - 2.0**-24))).log()).argmax(dim=-1)


def _mix(x: torch.Tensor, key: torch.Tensor | int = 0) -> torch.Tensor:
    """A bijective hash of int32: the finaliser of MurmurHash3, `key` added half way.

    Products wrap around; the masks make the shifts to the right logical.
    """
    x = (x ^ ((x >> 16) & 0xFFFF)) * -0x7A143595 + key
    x = (x ^ ((x >> 13) & 0x7FFFF)) * -0x3D4D51CB
    return x ^ ((x >> 16) & 0xFFFF)
