"""From logits to tokens. One row is one sequence; rows never influence each other.

Order: logprobs are read off the untouched logits; then logit_bias is added, end-of-sequence tokens
are suppressed while below min_tokens, so are the last tokens of bad_words, and what a grammar or
allowed_token_ids rule out, then penalties; greedy rows take the largest logit; the others divide by
the temperature, drop what typical_p, min_p, top_k and top_p (in this order, each on what the one
before left) rule out, and draw. Tokens that are as good as the last one that typical_p, top_k or
top_p keeps are kept too, so the outcome never depends on a sorting order.

A draw is a race: token t wins with the smallest E_t / p_t, E_t ~ Exp(1). E_t is a hash of (seed,
position, t) alone: a seed gives the same tokens in any batch, after a preemption and on any device
(as far as the logits agree).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from multilora.forward.sampling_input import (
    Biases,
    Penalties,
    PromptRows,
    SamplingTensors,
    TokenMasks,
    Typical,
)
from multilora_kernels.draw import draw
from multilora_kernels.draws import Draws

_ROWS_AT_ONCE = 16  # bounds the memory of what works on whole rows


class Sampled(NamedTuple):
    """`logprobs` of the picked tokens, and `likelier`, how many tokens have a larger one, are None
    when no row asked; the K most likely, best first, are None when no row asked for more than the
    picked one."""

    token_ids: torch.Tensor  # int64 [N]
    logprobs: torch.Tensor | None  # float32 [N]
    likelier: torch.Tensor | None  # int64 [N]
    top_ids: torch.Tensor | None  # int64 [N, K]
    top_logprobs: torch.Tensor | None  # float32 [N, K]


def sample(logits: torch.Tensor, inputs: SamplingTensors) -> Sampled:
    """Pick one token per row of `logits` float32 [N, V], which stay as they are.

    Without synchronisation: a GPU may not have begun when this returns.
    """
    changes = (inputs.biases, inputs.suppressed, inputs.masks, inputs.penalties, inputs.typical)
    adjusted = logits if all(change is None for change in changes) else logits.clone()
    if inputs.biases is not None:
        _bias(adjusted, inputs.biases)
    if inputs.suppressed is not None:
        # Not by [] = number: that would be copied from the host, which waits for the GPU.
        never = adjusted.new_full((), -torch.inf)
        adjusted.index_put_(inputs.suppressed.unbind(), never)
    if inputs.masks is not None:
        _mask(adjusted, inputs.masks)
    if inputs.penalties is not None:
        _penalise(adjusted, inputs.penalties)
    if inputs.typical is not None:
        _keep_typical(adjusted, inputs.typical)
    return _report(logits, _pick(adjusted, inputs.draws), inputs.num_logprobs)


def score(prompts: Sequence[PromptRows], project: Callable[[PromptRows], torch.Tensor]) -> Sampled:
    """What the rows of a pass say of the next tokens of prompts, as if those had been picked.

    `project` gives the logits of some of the rows: never of all together, because [T, vocab] may
    not fit.
    """
    parts = [_report(project(some), some.token_ids, some.num_logprobs) for some in prompts]
    columns = zip(*parts, strict=True)
    return Sampled._make(None if None in column else torch.cat(column) for column in columns)


def _pick(logits: torch.Tensor, draws: Draws | None) -> torch.Tensor:
    if draws is None:
        return logits.argmax(dim=-1)
    drawn = draw(logits, draws)
    if len(drawn) == len(logits):
        return drawn
    return logits.argmax(dim=-1).index_copy_(0, draws.rows, drawn)


def _report(logits: torch.Tensor, token_ids: torch.Tensor, count: int | None) -> Sampled:
    if count is None:
        return Sampled(token_ids, None, None, None, None)
    total = logits.logsumexp(dim=-1, keepdim=True)
    picked = logits.gather(1, token_ids.unsqueeze(1))
    logprobs, likelier = (picked - total).squeeze(1), (logits > picked).sum(dim=-1)
    if count == 0:
        return Sampled(token_ids, logprobs, likelier, None, None)
    top, top_ids = logits.topk(min(count, logits.shape[1]), dim=-1)
    return Sampled(token_ids, logprobs, likelier, top_ids, top - total)


def _bias(logits: torch.Tensor, biases: Biases) -> None:
    """In place."""
    index = biases.entries.unbind()
    logits.index_put_(index, logits[index] + biases.values)


def _mask(logits: torch.Tensor, masks: TokenMasks) -> None:
    """In place: -inf where a token's bit is 0."""
    bit = torch.arange(8, dtype=torch.uint8, device=logits.device)
    for rows, bits in zip(*(x.split(_ROWS_AT_ONCE) for x in masks), strict=True):
        ruled_out = ((bits.unsqueeze(-1) >> bit) & 1).flatten(1)[:, : logits.shape[1]] == 0
        logits[rows] = logits[rows].masked_fill(ruled_out, -torch.inf)


def _keep_typical(logits: torch.Tensor, typical: Typical) -> None:
    """In place: -inf but for the fewest tokens that hold typical_p of the probability and whose
    information is nearest to the expected one, the entropy (arXiv:2202.00666)."""
    for rows, temperature, mass in zip(*(x.split(_ROWS_AT_ONCE) for x in typical), strict=True):
        x = logits[rows]
        information = -(x / temperature).log_softmax(dim=-1)
        p = (-information).exp()
        entropy = (p * information).masked_fill(p == 0, 0).sum(dim=-1, keepdim=True)
        distance, order = (information - entropy).abs().sort(dim=-1)
        before = p.gather(1, order).cumsum(dim=-1) < mass
        last = before.sum(dim=-1, keepdim=True).clamp_(max=x.shape[1] - 1)
        kept = (information - entropy).abs() <= distance.gather(1, last)
        logits[rows] = x.masked_fill(~kept, -torch.inf)


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
