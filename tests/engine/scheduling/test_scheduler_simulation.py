"""Scheduler under traffic that is known to starve somebody: what waits how long, at what price.

16 adapters share pages for 8, one of them floods, base requests flow beside them and hundreds of
adapters never finish loading. Time is counted in passes; every row of a pass costs the same.
"""

import itertools
import random
import time
from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

import pytest

from multilora.request import AdapterSet, Request
from multilora.scheduling.batch import SampledToken
from multilora.scheduling.fair_queue import FairQueue
from multilora.scheduling.sequence import Sequence, SequenceStatus
from multilora_api.sampling import SamplingParams
from support.engine.scheduler import FakeCache, make, run

ADAPTERS = [f"a{i}" for i in range(16)]
PAGES = 8
MAX_RUNNING = 32
LONGEST = 48  # most output tokens
PATIENCE = 32
COPY = 3  # passes that a copy to the device takes
PREFILL = 256
LARGEST = 40 + LONGEST  # tokens of the largest request
QUANTUM = 256
NEVER = 10**9


class FirstCome(FairQueue):
    """What fairness is measured against: by arrival, whatever can start starts."""

    def candidates(self, without: Container[AdapterSet] = ()) -> Iterator[Sequence]:
        left: set[AdapterSet] = set()
        for sequence in sorted(self, key=lambda sequence: sequence.arrival):
            if sequence.request.adapters in left or sequence.request.adapters in without:
                continue
            yield sequence
            if sequence.status is SequenceStatus.WAITING:
                left.add(sequence.request.adapters)


@dataclass
class Report:
    passes: int = 0
    waits: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    rows: int = 0

    def worst(self, *adapters: str) -> int:
        return max(wait for name in adapters for wait in self.waits[name])


Trace = list[tuple[int, Request]]  # pass of arrival, by arrival


def zipf_trace(seed: int, passes: int, rate: float, flood: int = 0, cold: int = 0) -> Trace:
    rng = random.Random(seed)
    weights = [1 / rank for rank in range(1, len(ADAPTERS) + 1)]
    trace: list[tuple[int, str]] = []
    for step in range(passes):
        while rng.random() < rate / (1 + rate):
            trace.append((step, rng.choices(ADAPTERS, weights)[0]))
        if rng.random() < 0.05:
            trace.append((step, ""))
    trace += [(100, ADAPTERS[0])] * flood
    trace += [(100, f"cold{i}") for i in range(cold)]
    trace.sort(key=lambda entry: entry[0])
    numbers = itertools.count()
    return [(step, _request(rng, f"r{next(numbers)}", name)) for step, name in trace]


def even_trace(seed: int, passes: int, rate: float) -> Trace:
    rng = random.Random(seed)
    names = [(step, name) for step in range(passes) for name in ["", *ADAPTERS]]
    chosen = [entry for entry in names if rng.random() < rate]
    return [(step, _request(rng, f"r{number}", name)) for number, (step, name) in enumerate(chosen)]


def _request(rng: random.Random, name: str, adapter: str) -> Request:
    prompt = tuple(rng.randrange(10, 1000) for _ in range(rng.randint(4, 40)))
    sampling = SamplingParams(max_tokens=rng.randint(8, LONGEST))
    return Request(name, prompt, adapter, sampling)


def simulate(
    trace: Trace,
    queue: FairQueue | None = None,
    patience: int = PATIENCE,
    max_running: int = MAX_RUNNING,
    prefill: int = PREFILL,
) -> Report:
    cache = FakeCache(PAGES, copy_passes=COPY)
    cache.loading = {request.adapter_id for _, request in trace if "cold" in request.adapter_id}
    scheduler = make(
        cache, num_blocks=4096, max_running=max_running, max_batch_prefill_tokens=prefill,
        patience=patience, quantum=QUANTUM,
    )  # fmt: skip
    if queue is not None:
        scheduler._waiting._queue = queue
    report = Report()
    arrivals: dict[str, int] = {}
    pending = iter(trace)
    coming = next(pending, None)
    while coming or len(scheduler) > len(cache.loading):
        while coming and coming[0] <= report.passes:
            scheduler.add(coming[1])
            arrivals[coming[1].request_id] = coming[0]
            coming = next(pending, None)
        cache.tick()
        batch, _ = run(scheduler)
        report.rows += batch.num_tokens
        for item in batch.items:
            request = item.sequence.request
            arrived = arrivals.pop(request.request_id, None)
            if arrived is not None:
                report.waits[request.adapter_id].append(report.passes - arrived)
        report.passes += 1
    return report


# A reservation is open until the sequences of the closed adapters have ended and the copy is made.
# Reservations are opened for half of the pages together; those of all other adapters may be before
# ours, and one lot is open already.
RESERVATION = LONGEST + 2 + COPY + 1
RESERVATION_BOUND = PATIENCE + RESERVATION * (1 + -(-(len(ADAPTERS) - 1) // (PAGES // 2)))
# Every row that runs costs one token a pass at least, and in a round every other queue (base and
# all other adapters) starts one turn and the largest request's worth of tokens. What waits
# before us on our own adapter is one round's worth more.
ROUND = len(ADAPTERS) * (QUANTUM + LARGEST) // MAX_RUNNING
TURN_BOUND = 2 * ROUND + LONGEST


@pytest.mark.parametrize("seed", range(2))
def test_a_flood_and_cold_adapters_starve_nobody(seed: int):
    trace = zipf_trace(seed, passes=1200, rate=0.7, flood=1000, cold=300)
    fair = simulate(trace)
    worst = fair.worst(*ADAPTERS[1:])
    assert worst <= RESERVATION_BOUND + TURN_BOUND
    assert fair.worst("") <= TURN_BOUND
    first_come = simulate(trace, FirstCome(QUANTUM), NEVER)
    assert min(first_come.worst(*ADAPTERS[1:]), first_come.worst("")) > 4 * worst
    assert fair.passes <= 1.05 * first_come.passes


@pytest.mark.parametrize("seed", range(3))
def test_adapters_that_are_always_busy_make_room_and_base_requests_start_at_once(seed: int):
    """Enough rows for everybody: only pages are scarce, and nobody's adapter falls idle."""
    trace = even_trace(seed, passes=1000, rate=0.15)
    fair = simulate(trace, max_running=256, prefill=4096)
    assert fair.worst(*ADAPTERS) <= RESERVATION_BOUND
    assert fair.worst("") == 0
    without_reservations = simulate(trace, None, NEVER, max_running=256, prefill=4096)
    assert without_reservations.worst(*ADAPTERS) > RESERVATION_BOUND
    assert fair.passes <= 1.05 * without_reservations.passes


@pytest.mark.parametrize(("seed", "rate"), [(0, 0.6), (1, 0.9), (2, 1.1), (3, 1.5)])
def test_fairness_costs_at_most_a_twentieth_of_the_throughput(seed: int, rate: float):
    trace = zipf_trace(seed, passes=1000, rate=rate)
    fair = simulate(trace)
    first_come = simulate(trace, FirstCome(QUANTUM), NEVER)
    assert fair.rows == first_come.rows
    assert fair.passes <= 1.05 * first_come.passes


def test_a_thousand_adapters_that_load_cost_a_pass_little():
    cache = FakeCache(PAGES)
    scheduler = make(cache, num_blocks=1024, max_running=MAX_RUNNING)
    cache.loading = {f"cold{i}" for i in range(1000)}
    scheduler.add(Request("base", (10, 11), "", SamplingParams(max_tokens=100)))
    for number in range(5000):
        adapter = f"cold{number % 1000}"
        scheduler.add(Request(f"r{number}", (10, 11), adapter, SamplingParams()))
    run(scheduler)
    assert cache.asked == 1000  # once for each adapter: this starts the loads
    seconds: list[float] = []
    for _ in range(16):
        cache.asked, start = 0, time.thread_time()
        batch = scheduler.schedule()
        seconds.append(time.thread_time() - start)
        scheduler.postprocess(batch, [SampledToken(7)])
        assert cache.asked <= 64
    assert min(seconds) < 2e-3
    cache.loading.remove("cold777")
    for _ in range(16):  # each is asked for again within 1000 / 64 passes
        batch, _ = run(scheduler)
        if batch.num_adapters:
            return
    raise AssertionError("an adapter was loaded and nobody noticed")
