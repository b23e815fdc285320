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

from multilora.sampling_input import Penalties, SamplingInput
from multilora_kernels.draw import draw
from multilora_kernels.draws import Draws


@dataclass(frozen=True, eq=False)
class Sampled:
    """`logprobs` of the picked tokens are None when no row asked; the K most likely, best first,
    are None when no row asked for more than the picked one."""

    token_ids: torch.Tensor  # int64 [N]
    logprobs: torch.Tensor | None  # float32 [N]
    top_ids: torch.Tensor | None  # int64 [N, K]
    top_logprobs: torch.Tensor | None  # float32 [N, K]


def sample(logits: torch.Tensor, inputs: SamplingInput) -> Sampled:
    """Pick one token per row of `logits` float32 [N, V], which stay as they are.

    Without synchronisation: a GPU may not have begun when this returns.
    """
    adjusted = logits
    if inputs.suppressed is not None or inputs.penalties is not None:
        adjusted = logits.clone()
    if inputs.suppressed is not None:
        # Not by [] = number: that would be copied from the host, which waits for the GPU.
        never = adjusted.new_full((), -torch.inf)
        adjusted.index_put_(inputs.suppressed.unbind(), never)
    if inputs.penalties is not None:
        _penalise(adjusted, inputs.penalties)
    return _report(logits, _pick(adjusted, inputs.draws), inputs.num_logprobs)


def _pick(logits: torch.Tensor, draws: Draws | None) -> torch.Tensor:
    if draws is None:
        return logits.argmax(dim=-1)
    drawn = draw(logits, draws)
    if len(drawn) == len(logits):
        return drawn
    return logits.argmax(dim=-1).index_copy_(0, draws.rows, drawn)


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
