"""Scheduler and adapters that load, lack room, reserve it, fail or take too long."""

import random
from dataclasses import replace

import pytest

from multilora.errors import ErrorCode, RequestError
from multilora.request import FinishReason
from multilora.scheduling.scheduler import Scheduler
from support.engine.scheduler import Clock, FakeCache, make, names, request, run


def starts(
    scheduler: Scheduler, cache: FakeCache, steps: range, busy: str = "", tokens: int = 1
) -> dict[str, int]:
    """Run while each adapter of `busy` gets a request a pass → request → pass of its start."""
    started: dict[str, int] = {}
    for step in steps:
        for adapter in busy:
            scheduler.add(request(f"{adapter}{step}", 4, adapter, max_tokens=tokens))
        cache.tick()
        for name, _count in names(run(scheduler)[0]):
            started.setdefault(name, step)
    return started


def test_a_loading_adapter_is_skipped_and_a_failed_one_ends_its_requests_only():
    cache = FakeCache(4)
    cache.loading, cache.broken = {"cold"}, {"bad"}
    scheduler = make(cache)
    for name, adapter in [("r0", "cold"), ("r1", "bad"), ("r2", ""), ("r3", "warm")]:
        scheduler.add(request(name, 4, adapter))
    batch, outputs = run(scheduler)
    assert names(batch) == [("r3", 4), ("r2", 4)]
    failed = [output for output in outputs if output.finish_reason is FinishReason.ERROR]
    assert [output.request_id for output in failed] == ["r1"]
    assert isinstance(failed[0].error, RequestError)
    cache.loading.clear()
    assert ("r0", 4) in names(run(scheduler)[0])


def test_a_starved_adapter_gets_its_turn_and_base_requests_never_wait():
    """Two adapters fill the pool and each always has somebody running."""
    scheduler = make(FakeCache(2), patience=3)
    first_pass: dict[str, int] = {}
    for step in range(60):
        scheduler.add(request(f"a{step}", 4, "a", max_tokens=3))
        scheduler.add(request(f"b{step}", 4, "b", max_tokens=3))
        scheduler.add(request(f"base{step}", 4, "", max_tokens=1))
        if step == 5:
            scheduler.add(request("cold", 4, "c"))
        batch, _ = run(scheduler)
        for name, _count in names(batch):
            first_pass.setdefault(name, step)
        if "cold" in first_pass:
            break
    assert first_pass["cold"] <= 5 + 3 + 4  # patience, then at most what still runs
    assert all(first_pass[f"base{step}"] == step for step in range(first_pass["cold"]))


def test_only_as_many_adapters_as_a_reservation_needs_are_closed():
    """a, b, c and d are always busy; x needs two pages: the two that end soonest make room."""
    scheduler = make(
        FakeCache(4, {"x": 2}), patience=3, max_running=32, max_batch_prefill_tokens=512
    )
    for adapter, length in [("a", 40), ("b", 8), ("c", 40), ("d", 10)]:
        scheduler.add(request(adapter, 4, adapter, max_tokens=length))
    run(scheduler)
    scheduler.add(request("cold", 4, "x", max_tokens=2))
    started: dict[str, int] = {}
    for step in range(12):
        for adapter in "abcd":
            scheduler.add(request(f"{adapter}{step}", 4, adapter, max_tokens=6))
        for name, _count in names(run(scheduler)[0]):
            started.setdefault(name, step)
    assert started["cold"] == 9  # when d ends
    assert all(started[f"{adapter}{step}"] == step for adapter in "ac" for step in range(12))
    assert started["b3"] > 9 and started["d3"] > 9  # closed from pass 3 on, resident or not


def test_while_a_reservation_is_open_no_other_adapter_takes_the_pages_it_collects():
    """big needs the whole pool; small ones that come and go would always find a page."""
    scheduler = make(
        FakeCache(4, {"big": 4}), patience=3, max_running=32, max_batch_prefill_tokens=512
    )
    started: dict[str, int] = {}
    for step in range(40):
        scheduler.add(request(f"s{step}", 4, f"small{step}", max_tokens=3))
        if step == 5:
            scheduler.add(request("big", 4, "big"))
        for name, _count in names(run(scheduler)[0]):
            started.setdefault(name, step)
    assert started["big"] <= 5 + 3 + 3 + 1  # patience, what runs, the pass that reserves


def test_an_adapter_that_loads_does_not_grow_old():
    cache = FakeCache(2)
    scheduler = make(cache, patience=3)
    cache.loading = {"cold"}
    scheduler.add(request("cold", 4, "cold"))
    for step in range(20):
        for adapter in "ab":
            scheduler.add(request(f"{adapter}{step}", 4, adapter, max_tokens=2))
        batch, _ = run(scheduler)
        assert {(f"a{step}", 4), (f"b{step}", 4)} <= set(names(batch))


@pytest.mark.parametrize("full", [False, True])
def test_a_request_gives_up_when_its_adapter_loads_too_long(full: bool):
    clock, cache = Clock(), FakeCache(4)
    cache.loading = {"cold"}
    scheduler = make(cache, clock=clock, max_running=1)
    if full:
        scheduler.add(request("runs", 4, "a", max_tokens=50))
    scheduler.add(replace(request("short", 4, "cold"), adapter_timeout=2.5))
    scheduler.add(replace(request("long", 4, "cold"), adapter_timeout=60))
    clock.now += 2.4
    run(scheduler)
    assert {sequence.request.request_id for sequence in scheduler.waiting} == {"short", "long"}
    clock.now += 0.2
    _, outputs = run(scheduler)
    (ended,) = [output for output in outputs if output.finish_reason]
    assert ended.request_id == "short"
    assert ended.error and ended.error.code is ErrorCode.UNAVAILABLE
    assert ended.error.message == (
        "adapter 'cold' is still being loaded after 2.5 s; try again later or send a larger "
        "adapter_timeout"
    )
    clock.now += 60
    cache.loading.clear()
    run(scheduler)
    assert len(scheduler) == 1 + full  # it has come late, but before anybody looked


def test_waiting_for_room_or_for_a_turn_is_not_waiting_for_a_load():
    clock, cache = Clock(), FakeCache(1)
    scheduler = make(cache, clock=clock, max_running=2, patience=10**6)
    scheduler.add(request("runs", 4, "a", max_tokens=60))
    run(scheduler)
    scheduler.add(replace(request("room", 4, "b"), adapter_timeout=1))
    scheduler.add(replace(request("turn", 4, "a"), adapter_timeout=1))
    for _ in range(40):
        clock.now += 10
        run(scheduler)
    assert "room" in [sequence.request.request_id for sequence in scheduler.waiting]
    cache.loading = {"b"}
    clock.now += 10
    _, outputs = run(scheduler)
    assert [o.request_id for o in outputs if o.finish_reason is FinishReason.ERROR] == ["room"]
    assert cache.slots.num_references == sum(1 for s in scheduler.running if s.adapters)


def test_reservations_that_half_of_the_pages_can_serve_are_open_together():
    cache = FakeCache(4)
    scheduler = make(cache, patience=3, max_running=64, max_batch_prefill_tokens=512)
    starts(scheduler, cache, range(1), "abcd", 10)
    for name in "xyz":
        scheduler.add(request(name, 4, name, max_tokens=20))
    started = starts(scheduler, cache, range(1, 40), "abcd", 10)
    assert started["x"] == started["y"] == 13  # what started in step 3 has ended
    assert started["z"] > 13
    assert started["c13"] == started["d13"] == 13  # never closed


def test_the_oldest_reservation_is_served_first_however_many_pages_it_needs():
    cache = FakeCache(8, {"big": 3})
    scheduler = make(cache, patience=3, max_running=64, max_batch_prefill_tokens=512)
    for adapter, length in zip("abcdefgh", (8, 10, 12, 40, 40, 40, 40, 40), strict=True):
        scheduler.add(request(adapter, 4, adapter, max_tokens=length))
    scheduler.add(request("big", 4, "big"))
    starts(scheduler, cache, range(1))
    scheduler.add(request("small", 4, "small"))
    started = starts(scheduler, cache, range(1, 30))
    assert started["big"] == 12  # when a, b and c have ended
    assert started["small"] > started["big"]


@pytest.mark.parametrize("length", range(20, 24))
def test_a_reservation_is_not_lost_among_many_adapters_that_load(length: int):
    cache = FakeCache(1)
    scheduler = make(cache, patience=2)
    cache.loading = {f"cold{number}" for number in range(200)}
    starts(scheduler, cache, range(1), "a", length)
    scheduler.add(request("base", max_tokens=100))
    scheduler.add(request("room", adapter="x"))
    for adapter in sorted(cache.loading):
        scheduler.add(request(adapter, adapter=adapter))
    assert starts(scheduler, cache, range(1, 40))["room"] == length


def test_a_reservation_whose_request_has_left_is_closed():
    cache = FakeCache(1)
    scheduler = make(cache, patience=2)
    starts(scheduler, cache, range(1), "a", 20)
    scheduler.add(request("cold", 4, "x"))
    starts(scheduler, cache, range(1, 6))
    scheduler.add(request("later", 4, "a"))
    assert ("later", 4) not in names(run(scheduler)[0])
    scheduler.abort("cold")
    assert ("later", 4) in names(run(scheduler)[0])


def test_a_reservation_holds_its_pages_until_the_copy_is_made_and_used():
    cache = FakeCache(1, copy_passes=4)
    scheduler = make(cache, patience=2)
    starts(scheduler, cache, range(6), "a", 4)
    scheduler.add(request("cold", 4, "x"))
    started = starts(scheduler, cache, range(6, 40), "ay", 2)
    assert started["cold"] <= 6 + 2 + 4 + 2 + 4 + 1  # patience, what runs, a pass, the copy, a pass


@pytest.mark.parametrize("seed", range(24))
def test_every_request_ends_while_adapters_are_replaced(seed: int):
    """A pool too small for all, and new versions that take pages while their requests wait."""
    rng = random.Random(seed)
    adapters = [f"a{number}" for number in range(8)]
    cache = FakeCache(6, {name: rng.randint(1, 4) for name in adapters}, rng.choice([0, 2]))
    scheduler = make(cache, patience=4, max_running=6)
    for step in range(300):
        if rng.random() < 0.6:
            adapter = rng.choice(["", *adapters])
            scheduler.add(request(f"r{step}", 4, adapter, max_tokens=rng.randint(1, 30)))
        if rng.random() < 0.15:
            replaced = rng.choice(adapters)
            waiting = {sequence.request.adapter_id for sequence in scheduler.waiting}
            cache.replace(replaced, replaced in waiting)
        cache.tick()
        run(scheduler)
    for _ in range(1000):
        cache.tick()
        run(scheduler)
    assert not len(scheduler)
    assert cache.slots.num_references == 0
