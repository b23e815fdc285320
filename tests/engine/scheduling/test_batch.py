"""Items are frozen: what a sequence becomes after it was scheduled changes nothing in its item."""

from array import array

import pytest

from multilora.request import BASE_ONLY, AdapterSet, Request
from multilora.scheduling.batch import AdapterSpan, BatchItem, make_batch
from multilora.scheduling.sequence import Sequence

of = AdapterSet.of


def sequence(adapters: AdapterSet = BASE_ONLY, prompt: int = 6, arrival: int = 0) -> Sequence:
    made = Sequence(Request("r", tuple(range(prompt))), arrival, adapters)
    made.block_table = array("i", [0])
    return made


def test_the_next_tokens() -> None:
    some = sequence(of("a@1"))
    assert BatchItem.next(some, 4) == (some, 0, 4, False, of("a@1"), range(0))
    some.num_computed_tokens = 4
    item = BatchItem.next(some, 2)
    assert item == (some, 4, 2, True, of("a@1"), range(0))
    assert (item.end, item.num_output_tokens) == (6, 0)
    some.token_ids += [7, 8]
    some.num_computed_tokens = 7
    item = BatchItem.next(some, 1)
    assert item.samples and (item.start, item.end, item.num_output_tokens) == (7, 8, 2)


def test_an_item_stays_what_it_was_when_its_sequence_goes_on() -> None:
    some = sequence(of("a@1"))
    item = BatchItem.next(some, 6)
    some.num_computed_tokens = item.end
    some.append(9, frozenset(), 100)
    some.adapters = of("a@2")
    assert (item.start, item.num_new_tokens, item.end) == (0, 6, 6)
    assert item.samples, "a token that came later is not one that the pass left out"
    assert item.num_output_tokens == 0
    assert item.adapters == of("a@1")
    some.num_computed_tokens = 0  # as a preemption does
    some.adapters = BASE_ONLY
    assert (item.start, item.end, item.adapters) == (0, 6, of("a@1"))


def test_an_item_cannot_be_changed() -> None:
    item = BatchItem.next(sequence(), 6)
    for name in ("start", "num_new_tokens", "samples", "adapters"):
        with pytest.raises(AttributeError):
            setattr(item, name, 0)


def test_spans_are_of_the_sets_that_items_were_scheduled_with() -> None:
    """Two versions of an adapter are two sets; what a sequence has become since does not count."""
    sequences = [
        sequence(adapters, 3, index)
        for index, adapters in enumerate([of("a@2"), BASE_ONLY, of("a@1"), of("a@2")])
    ]
    items = [BatchItem.next(one, 3) for one in sequences]
    sequences[0].adapters = of("b@1")
    batch = make_batch(items, {of("a@1"): (4, 5), of("a@2"): (1,)})
    assert [item.sequence.arrival for item in batch.items] == [0, 3, 2, 1]
    assert batch.spans == (
        AdapterSpan(of("a@2"), 0, 6, (1,)),
        AdapterSpan(of("a@1"), 6, 3, (4, 5)),
    )
    assert (batch.num_tokens, batch.num_adapters, bool(batch)) == (12, 2, True)


def test_weights_make_different_sets() -> None:
    """The same adapter with another weight has rows of its own."""
    half = AdapterSet((of("a")[0]._replace(weight=0.5),))
    items = [BatchItem.next(sequence(adapters, 2), 2) for adapters in (half, of("a"), half)]
    batch = make_batch(items, {half: (1,), of("a"): (2,)})
    assert [(span.adapters, span.row_count) for span in batch.spans] == [(half, 4), (of("a"), 2)]


def test_no_items_are_no_work() -> None:
    assert not make_batch([], {})
