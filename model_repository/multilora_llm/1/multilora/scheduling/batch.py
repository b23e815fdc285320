"""The work of one forward pass, on the host: who computes how many tokens, in which order."""

from dataclasses import dataclass
from typing import NamedTuple

from multilora.scheduling.sequence import Sequence


class BatchItem(NamedTuple):
    """`num_new_tokens` tokens of `sequence`, from its num_computed_tokens on."""

    sequence: Sequence
    num_new_tokens: int

    @property
    def samples(self) -> bool:
        """True when this pass reaches the last known token, so its logits give the next one."""
        return self.num_new_tokens == self.sequence.num_uncomputed_tokens


class AdapterSpan(NamedTuple):
    """One adapter's contiguous rows [row_start, row_start + row_count) and its pool pages."""

    adapter_key: str
    row_start: int
    row_count: int
    pages: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Items ordered by adapter, base-only ones last; `spans` cover the adapter rows in order."""

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


def make_batch(items: list[BatchItem], pages: dict[str, tuple[int, ...]]) -> Batch:
    """Order `items` by adapter and find each adapter's rows.

    `pages` maps the adapter_key of every non-base item to its pool pages. Adapters come in the
    order of their pages: what is read together then lies together.
    """

    def order(item: BatchItem) -> tuple[bool, tuple[int, ...], int]:
        key = item.sequence.adapter_key
        return not key, pages.get(key, ()), item.sequence.arrival

    ordered = sorted(items, key=order)
    spans: list[AdapterSpan] = []
    row = 0
    for sequence, count in ordered:
        key = sequence.adapter_key
        if key:
            if spans and spans[-1].adapter_key == key:
                spans[-1] = spans[-1]._replace(row_count=spans[-1].row_count + count)
            else:
                spans.append(AdapterSpan(key, row, count, pages[key]))
        row += count
    return Batch(tuple(ordered), tuple(spans))


class SampledToken(NamedTuple):
    """What the sampler picked for one item; see TokenOutput for the logprobs."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
