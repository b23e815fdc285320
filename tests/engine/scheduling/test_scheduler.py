"""Scheduler: the laws in its docstring, by hand-made cases and by seeded random traces."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from multilora.errors import ErrorCode, RequestError
from multilora.request import FinishReason, Request, TokenOutput
from multilora.scheduling.batch import Batch
from multilora.scheduling.scheduler import Scheduler
from multilora_api.sampling import SamplingParams
from support.engine.scheduler import EOS, Clock, FakeCache, make, names, request, run

GONE = RequestError(ErrorCode.UNAVAILABLE, "the adapter was unloaded")


def test_batch_is_ordered_by_adapter_pages_with_base_rows_last():
    scheduler = make()
    for name, adapter in [("r0", "b"), ("r1", ""), ("r2", "a"), ("r3", "b")]:
        scheduler.add(request(name, 3, adapter))
    batch, _ = run(scheduler)
    assert names(batch) == [("r0", 3), ("r3", 3), ("r2", 3), ("r1", 3)]
    spans = [(span.adapters.only, span.row_start, span.row_count) for span in batch.spans]
    assert spans == [("b", 0, 6), ("a", 6, 3)]
    assert batch.num_tokens == 12


def test_long_prompts_are_chunked_and_decode_rows_go_on():
    scheduler = make(max_batch_prefill_tokens=16)
    scheduler.add(request("short", 4))
    run(scheduler)
    scheduler.add(request("long", 40))
    assert names(scheduler.schedule()) == [("short", 1), ("long", 16)]


def test_chunks_sample_only_at_the_end_of_the_prompt():
    scheduler = make(max_batch_prefill_tokens=16)
    scheduler.add(request("long", 40))
    counts = []
    for _ in range(3):
        batch, outputs = run(scheduler)
        counts.append((batch.items[0].num_new_tokens, len(outputs)))
    assert counts == [(16, 0), (16, 0), (8, 1)]


def test_ends_by_length_by_eos_and_by_room():
    scheduler = make(max_total_tokens=10)
    scheduler.add(request("length", 4, max_tokens=2))
    scheduler.add(request("room", 8, max_tokens=9))
    _, first = run(scheduler)
    assert [output.finish_reason for output in first] == [None, None]
    _, second = run(scheduler)
    assert {output.finish_reason for output in second} == {FinishReason.LENGTH}
    scheduler.add(request("eos", 4, max_tokens=9))
    scheduler.add(request("deaf", 4, max_tokens=2, ignore_eos=True))
    _, outputs = run(scheduler, token=EOS)
    reasons = {output.request_id: output.finish_reason for output in outputs}
    assert reasons == {"eos": FinishReason.STOP, "deaf": None}


def test_a_prefix_is_reused_by_the_same_adapter_only():
    scheduler = make()
    prompt = tuple(range(10, 30))
    for name, adapter, computed in [("x", "a", 20), ("y", "a", 4), ("z", "b", 20), ("w", "", 20)]:
        scheduler.add(Request(name, prompt, adapter, SamplingParams(max_tokens=1)))
        batch, _ = run(scheduler)
        assert names(batch) == [(name, computed)]
    assert scheduler.cached_tokens == 16


def test_short_of_blocks_the_youngest_is_preempted_and_loses_nothing():
    scheduler = make(num_blocks=4)
    scheduler.add(request("old", 8, max_tokens=16))
    scheduler.add(request("young", 8, max_tokens=16))
    tokens: Counter[str] = Counter()
    for _ in range(60):
        _, outputs = run(scheduler)
        tokens.update(output.request_id for output in outputs)
    assert scheduler.preemptions >= 1
    assert tokens == {"old": 16, "young": 16}
    assert scheduler.blocks.num_free == 4


def test_abort_while_waiting_and_while_running():
    scheduler = make(max_running=1)
    scheduler.add(request("r0", 4, "a"))
    scheduler.add(request("r1", 4, "a"))
    run(scheduler)
    scheduler.abort("r0")
    scheduler.abort("r1")
    scheduler.abort("nobody")
    outputs = scheduler.take_outputs()
    assert [(output.request_id, output.finish_reason) for output in outputs] == [
        ("r0", FinishReason.CANCELLED),
        ("r1", FinishReason.CANCELLED),
    ]
    assert len(scheduler) == 0
    assert scheduler.blocks.num_free == scheduler.blocks.num_blocks


def test_a_preempted_stream_goes_on_before_anything_new_starts():
    scheduler = make(num_blocks=4)
    scheduler.add(request("old", 8, max_tokens=16))
    scheduler.add(request("young", 8, "a", max_tokens=16))
    while not scheduler.preemptions:
        run(scheduler)
    for number in range(3):
        scheduler.add(request(f"new{number}", 4, f"n{number}", max_tokens=1))
    order: list[str] = []
    while len(scheduler):
        order += [name for name, _count in names(run(scheduler)[0]) if name not in order]
    assert order[:2] == ["old", "young"]


def test_a_small_request_does_not_overtake_one_that_lacks_kv_blocks():
    scheduler = make(num_blocks=4)
    scheduler.add(request("runs", 8, max_tokens=8))
    run(scheduler)
    scheduler.add(request("big", 24, "a", max_tokens=1))
    for step in range(7):
        scheduler.add(request(f"small{step}", 4, f"b{step}", max_tokens=1))
        assert names(run(scheduler)[0]) == [("runs", 1)]
    assert ("big", 24) in names(run(scheduler)[0])  # "runs" has ended


def test_a_flood_on_one_adapter_delays_the_others_by_a_turn():
    scheduler = make(max_running=1, quantum=8)
    for number in range(50):
        scheduler.add(request(f"flood{number}", 4, "a", max_tokens=4))
    run(scheduler)
    scheduler.add(request("other", 4, "b", max_tokens=4))
    scheduler.add(request("base", 4, "", max_tokens=4))
    order = [names(run(scheduler)[0])[0][0] for _ in range(16)]
    assert order[3::4] == ["other", "base", "flood1", "flood2"]


def test_counts_and_the_end_of_an_adapter():
    cache = FakeCache(4)
    scheduler = make(cache, max_running=3)
    for name, adapter in [("r0", "a"), ("r1", "b"), ("r2", ""), ("r3", "a"), ("r4", "c")]:
        scheduler.add(request(name, 4, adapter, max_tokens=50))
    run(scheduler)
    running = {sequence.request.request_id for sequence in scheduler.running}
    assert running == {"r0", "r3", "r1"}  # the turn of a is not over after one small request
    assert scheduler.counts() == {"a": (2, 0), "b": (1, 0), "c": (0, 1)}
    assert len(scheduler.waiting) == scheduler.num_waiting == 2
    scheduler.add(request("r5", 4, "a"))
    scheduler.abort_adapter("a", GONE, running=False)
    assert [output.request_id for output in scheduler.take_outputs()] == ["r5"]
    scheduler.abort_adapter("a", GONE, running=True)
    outputs = scheduler.take_outputs()
    assert [output.request_id for output in outputs] == ["r0", "r3"]
    assert all(output.error is GONE for output in outputs)
    assert scheduler.counts() == {"b": (1, 0), "c": (0, 1)}
    assert cache.slots.num_references == 1


def assert_consistent(scheduler: Scheduler, cache: FakeCache) -> None:
    """What is counted is what is held."""
    held = {block for sequence in scheduler.running for block in sequence.block_table}
    assert scheduler.blocks.num_free == 20 - len(held)
    sequences = scheduler.running + scheduler.waiting  # preempted ones keep their adapter
    busy = sum(bool(sequence.adapters) for sequence in sequences)
    assert cache.slots.num_references == busy
    assert len(scheduler) == len(scheduler.running) + len(scheduler.waiting)
    counts = scheduler.counts().values()
    assert sum(running for running, _ in counts) == sum(
        bool(sequence.adapters) for sequence in scheduler.running
    )
    base = sum(not sequence.request.adapter_id for sequence in scheduler.waiting)
    assert sum(waiting for _, waiting in counts) == scheduler.num_waiting - base


@pytest.mark.parametrize("seed", range(40))
def test_random_traces_end_every_request_once_and_leak_nothing(seed: int):
    rng = random.Random(seed)
    adapters = [f"a{i}" for i in range(8)]
    clock = Clock()
    cache = FakeCache(5, {name: rng.randint(1, 4) for name in adapters}, rng.choice([0, 0, 2]))
    scheduler = make(
        cache, 20, clock, max_batch_prefill_tokens=rng.choice([8, 24, 64]), patience=4,
        quantum=rng.choice([4, 32, 256]),
    )  # fmt: skip
    ended: Counter[str] = Counter()
    live: list[str] = []
    for step in range(1500):
        if step < 250 and rng.random() < 0.4:
            name = f"r{step}"
            adapter = rng.choice(["", *adapters])
            new = request(name, rng.randint(1, 40), adapter, max_tokens=rng.randint(1, 30))
            scheduler.add(replace(new, adapter_timeout=rng.choice([5.0, 1e9])))
            live.append(name)
        if live and rng.random() < 0.05:
            scheduler.abort(rng.choice(live))
        if rng.random() < 0.01:
            scheduler.abort_adapter(rng.choice(adapters), GONE, rng.random() < 0.5)
        cache.loading = set(rng.sample(adapters, 2)) if step < 250 else set()
        cache.broken = {"a7"} if 100 < step < 120 else set()
        clock.now += rng.random()
        cache.tick()
        _, outputs = run(scheduler, token=EOS if rng.random() < 0.1 else 7)
        ended.update(output.request_id for output in outputs if output.finish_reason)
        assert_consistent(scheduler, cache)
    assert ended == Counter(live)
    assert len(scheduler) == 0
    assert scheduler.blocks.num_free == 20


def test_queue_time_is_from_arrival_to_the_first_pass_once() -> None:
    clock = Clock()
    scheduler = make(clock=clock, max_running=1)
    scheduler.add(replace(request("first", max_tokens=2), arrived_at=clock.now))
    scheduler.add(replace(request("second", max_tokens=2), arrived_at=clock.now - 1))
    seen: dict[str, list[float | None]] = {}
    while len(scheduler):
        clock.now += 2
        for output in run(scheduler)[1]:
            seen.setdefault(output.request_id, []).append(output.queue_time)
    assert seen == {"first": [2.0, 2.0], "second": [7.0, 7.0]}


def scored_of(batch: Batch) -> list[range]:
    return [item.scored for item in batch.items if item.scored]


def test_each_place_of_a_prompt_is_scored_once_also_after_a_preemption() -> None:
    """An older sequence takes a block when 15 of 24 tokens are computed. What has been told is not
    told again, and its full block comes from the cache."""
    scheduler = make(num_blocks=4, max_batch_prefill_tokens=5)
    scheduler.add(request("old", 5, max_tokens=8))
    run(scheduler)
    scheduler.add(request("scored", 24, prompt_logprobs=0, max_tokens=0))
    starts, places, outputs = list[int](), list[int](), list[TokenOutput]()
    while len(scheduler):
        batch, outputs = run(scheduler)
        places += (place for scored in scored_of(batch) for place in scored)
        items = [each for each in batch.items if each.sequence.request.request_id == "scored"]
        starts += (item.start for item in items)
        assert not any(item.samples for item in items)
    assert outputs[-1].finish_reason is FinishReason.LENGTH and outputs[-1].token_id is None
    assert (scheduler.preemptions, starts) == (1, [0, 5, 10, 8, 13, 18, 23])
    assert places == [*range(1, 24)]


def test_a_scored_prompt_uses_the_cache_as_far_as_it_has_been_told() -> None:
    scheduler = make()
    scheduler.add(request("same", 24, max_tokens=1))
    run(scheduler)
    scheduler.add(request("same", 24, max_tokens=0, prompt_logprobs=1))
    (item,) = run(scheduler)[0].items
    assert (item.start, item.scored, item.samples) == (0, range(1, 24), False)
    scheduler.add(request("same", 24, max_tokens=1))
    batch, outputs = run(scheduler)
    assert batch.items[0].start == 16, "the last token is computed"
    assert not scored_of(batch) and outputs[-1].finish_reason is FinishReason.LENGTH
