"""FairQueue: every adapter with work gets the same number of tokens, whatever the others send."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multilora.request import AdapterSet
from multilora.scheduling.fair_queue import FairQueue
from multilora.scheduling.sequence import Sequence
from support.engine.scheduler import request
from support.laws import LAW

of = AdapterSet.of


def waiting(name: str, adapter: str, prompt: int = 4, output: int = 4, arrival: int = 0):
    return Sequence(request(name, prompt, adapter, max_tokens=output), arrival)


def filled(quantum: int, *sequences: Sequence) -> FairQueue:
    queue = FairQueue(quantum)
    for sequence in sequences:
        queue.push(sequence)
    return queue


def take(queue: FairQueue, count: int = 1000) -> list[str]:
    taken: list[str] = []
    for sequence in queue.candidates():
        if len(taken) == count:
            break
        queue.take(sequence)
        taken.append(sequence.request.request_id)
    return taken


def test_turns_go_round_and_each_adapter_keeps_its_order():
    sequences = [waiting(f"{name}{i}", name) for name in "ab" for i in range(3)]
    queue = filled(8, *sequences, waiting("base", ""))
    assert take(queue, 4) == ["a0", "b0", "base", "a1"]
    assert take(queue) == ["b1", "a2", "b2"]
    assert len(queue) == 0 and list(queue) == []


@pytest.mark.parametrize("quantum", [1, 7, 64, 10_000])
def test_tokens_are_shared_evenly_whatever_the_sizes(quantum: int):
    """Shreedhar and Varghese: the difference is at most a turn and the largest request."""
    rng = random.Random(quantum)
    queue = FairQueue(quantum)
    largest = {"many": 10, "big": 400, "mixed": 200}
    for adapter, most in largest.items():
        tokens = 0
        while tokens < 40_000:
            sequence = waiting(f"{adapter}{tokens}", adapter, rng.randint(1, most), most)
            queue.push(sequence)
            tokens += sequence.cost
    served: Counter[str] = Counter()
    for sequence in queue.candidates():
        queue.take(sequence)
        served[sequence.request.adapter_id] += sequence.cost
        if served.total() > 60_000:
            break
        assert max(served.values()) - min(served[name] for name in largest) <= quantum + 2 * 800


def test_an_adapter_that_is_left_has_no_turn_until_the_next_pass_and_keeps_its_place():
    queue = filled(8, *(waiting(f"{name}{i}", name) for name in "abc" for i in range(2)))
    seen = []
    for sequence in queue.candidates():
        seen.append(sequence.request.request_id)
        if sequence.request.adapter_id != "a":
            queue.take(sequence)
    assert seen == ["a0", "b0", "c0", "b1", "c1"]
    queue.push(waiting("b2", "b"))
    assert take(queue, 1) == ["a0"]


def test_adapters_can_be_left_out_of_a_pass():
    queue = filled(8, *(waiting(name, name) for name in "abc"))
    assert [
        sequence.request.request_id for sequence in queue.candidates(without=[of("a"), of("c")])
    ] == ["b"]


def test_a_sequence_that_ends_at_its_turn_makes_way_for_the_next_of_its_adapter():
    queue = filled(100, *(waiting(f"a{i}", "a") for i in range(3)))
    seen = []
    for sequence in queue.candidates():
        seen.append(sequence.request.request_id)
        queue.remove(sequence)
    assert seen == ["a0", "a1", "a2"]
    assert len(queue) == 0


def test_a_preempted_sequence_comes_first_oldest_first_and_does_not_pay_again():
    sequences = [waiting(f"a{i}", "a", arrival=i) for i in range(4)]
    queue = filled(8, *sequences, waiting("b0", "b", arrival=9), waiting("b1", "b", arrival=10))
    assert take(queue, 3) == ["a0", "b0", "a1"]
    queue.push(sequences[1])
    queue.push(sequences[0])
    assert [s.request.request_id for s in queue][:2] == ["a0", "a1"]
    assert of("a") in queue and queue.counts() == {of("a"): 4, of("b"): 1}
    assert take(queue) == ["a0", "a1", "b1", "a2", "a3"]


def test_an_adapter_whose_preempted_sequence_is_left_starts_nothing_new():
    sequences = [waiting(f"a{i}", "a", arrival=i) for i in range(3)]
    queue = filled(8, *sequences, waiting("b", "b", arrival=9))
    take(queue, 1)
    queue.push(sequences[0])
    assert [sequence.request.request_id for sequence in queue.candidates()] == ["a0", "b"]
    assert of("a") in queue
    queue.remove(sequences[0])
    assert queue.counts() == {of("a"): 2, of("b"): 1}


def test_an_adapter_that_was_idle_has_saved_nothing():
    queue = filled(8, *(waiting(f"a{i}", "a") for i in range(20)))
    take(queue, 10)
    for number in range(20):
        queue.push(waiting(f"b{number}", "b"))
    assert take(queue, 6) in (
        ["a10", "b0", "a11", "b1", "a12", "b2"],
        ["b0", "a10", "b1", "a11", "b2", "a12"],
    )


def test_a_request_larger_than_every_turn_is_served_in_few_steps():
    """Saved up in one go, not in a hundred million rounds."""
    queue = filled(1, *(waiting(f"r{i}", f"a{i}", 4, 10**8) for i in range(50)))
    assert len(take(queue)) == 50


@LAW
@given(
    st.sampled_from([1, 7, 64, 10_000]),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 400)), max_size=40),
    st.lists(st.booleans(), min_size=1, max_size=40),
)
def test_everyone_is_served_once_and_in_order(
    quantum: int, arrivals: list[tuple[str, int]], taken: list[bool]
):
    """Whatever is left at some of its turns; `taken` says at which turns it is not."""
    names = [f"{adapter}{number}" for number, (adapter, _) in enumerate(arrivals)]
    queue = filled(
        quantum, *(waiting(n, a, 4, size) for n, (a, size) in zip(names, arrivals, strict=True))
    )
    served: list[str] = []
    turns = itertools.cycle([*taken, True])
    while len(queue):
        for sequence in queue.candidates():
            if next(turns):
                queue.take(sequence)
                served.append(sequence.request.request_id)
    for adapter in "abc":
        mine = [name for name in names if name[0] == adapter]
        assert [name for name in served if name[0] == adapter] == mine
