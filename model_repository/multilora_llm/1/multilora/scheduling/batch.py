"""The work of one forward pass, on the host: who computes how many tokens, in which order."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from multilora.request import AdapterSet
from multilora.scheduling.sequence import Sequence


class BatchItem(NamedTuple):
    """The work on a sequence in one pass: its tokens from `start` on.

    All fields but `sequence` are frozen when the pass is scheduled.

    `samples`: the pass reaches the last token, so that its logits give the next one. That last
    token may be in flight: the pass before samples it, and the host does not know it yet.
    `scored`: the places of prompt tokens of whose logprobs the pass tells.
    """

    sequence: Sequence
    start: int
    num_new_tokens: int
    samples: bool
    adapters: AdapterSet
    scored: range = range(0)

    @staticmethod
    def next(sequence: Sequence, count: int) -> "BatchItem":
        """The next `count` tokens that are not computed."""
        start, unscored = sequence.num_computed_tokens, sequence.unscored
        generates = sequence.request.sampling.max_tokens > 0
        samples = generates and count == sequence.num_uncomputed_tokens
        first, end = max(start + 1, unscored.start), min(start + count + 1, unscored.stop)
        return BatchItem(sequence, start, count, samples, sequence.adapters, range(first, end))

    @property
    def end(self) -> int:
        """Where the pass ends; the index of the token that is sampled."""
        return self.start + self.num_new_tokens

    @property
    def is_late(self) -> bool:
        """Whether the last of its tokens is still in flight."""
        return len(self.sequence.token_ids) < self.end

    @property
    def num_output_tokens(self) -> int:
        """Output tokens before `end`."""
        return self.end - self.sequence.num_prompt_tokens


class AdapterSpan(NamedTuple):
    """The contiguous rows [row_start, row_start + row_count) of one adapter set, and its pages."""

    adapters: AdapterSet
    row_start: int
    row_count: int
    pages: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Items ordered by adapters, base-only ones last; `spans` cover the adapter rows in order."""

    items: tuple[BatchItem, ...]
    spans: tuple[AdapterSpan, ...]

    @property
    def num_tokens(self) -> int:
        return sum(item.num_new_tokens for item in self.items)

    @property
    def num_adapters(self) -> int:
        return len(self.spans)

    def __bool__(self) -> bool:
        return bool(self.items)


def make_batch(items: list[BatchItem], pages: Mapping[AdapterSet, tuple[int, ...]]) -> Batch:
    """Order `items` by adapters and find the rows of each set.

    `pages` maps the adapters of every non-base item to their pool pages. Sets come in the order of
    their pages, so that what is read together lies together.
    """

    def order(item: BatchItem) -> tuple[bool, tuple[int, ...], int]:
        return not item.adapters, pages.get(item.adapters, ()), item.sequence.arrival

    ordered = sorted(items, key=order)
    spans: list[AdapterSpan] = []
    row = 0
    for item in ordered:
        count = item.num_new_tokens
        if item.adapters:
            if spans and spans[-1].adapters == item.adapters:
                spans[-1] = spans[-1]._replace(row_count=spans[-1].row_count + count)
            else:
                spans.append(AdapterSpan(item.adapters, row, count, pages[item.adapters]))
        row += count
    return Batch(tuple(ordered), tuple(spans))


class SampledToken(NamedTuple):
    """What the sampler picked for one item; see TokenOutput for the logprobs."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    rank: int | None = None
