"""Scheduler: the laws in its docstring, by hand-made cases and by seeded random traces."""

import random
from collections import Counter
from typing import Any

import pytest

from multilora.adapter_gate import NotReady
from multilora.adapter_slots import AdapterSlots
from multilora.batch import Batch, SampledToken
from multilora.block_allocator import BlockAllocator
from multilora.errors import RequestError, invalid
from multilora.request import FinishReason, Request, SamplingParams, TokenOutput
from multilora.scheduler import Scheduler, SchedulerLimits

EOS = 1


class Gate:
    """Adapter memory without tensors: real AdapterSlots; loading and failing as told."""

    def __init__(self, num_pages: int, ranks: dict[str, int] | None = None) -> None:
        self.slots = AdapterSlots(num_pages)
        self.num_pages = ranks or {}
        self.loading: set[str] = set()
        self.broken: set[str] = set()

    def acquire(self, adapter_id: str) -> str | NotReady:
        if adapter_id in self.broken:
            raise invalid(f"{adapter_id} is broken")
        if adapter_id in self.loading:
            return NotReady.LOADING
        if adapter_id not in self.slots and (
            self.slots.reserve(adapter_id, self.num_pages.get(adapter_id, 1)) is None
        ):
            return NotReady.NO_ROOM
        self.slots.acquire(adapter_id)
        return adapter_id

    def release(self, adapter_key: str) -> None:
        self.slots.release(adapter_key)

    def pages(self, adapter_key: str) -> tuple[int, ...]:
        return self.slots.pages(adapter_key)


def make(gate: Gate | None = None, num_blocks: int = 64, **limits: int) -> Scheduler:
    values = {"max_running": 8, "max_batch_prefill_tokens": 32, "max_total_tokens": 128} | limits
    return Scheduler(
        SchedulerLimits(eos_token_ids=frozenset({EOS}), **values),
        BlockAllocator(num_blocks, 8),
        gate or Gate(8),
    )


def request(name: str, prompt: int = 4, adapter: str = "", **sampling: Any) -> Request:
    tokens = tuple(sum(map(ord, name)) % 1000 + 10 + i for i in range(prompt))
    return Request(name, tokens, adapter, SamplingParams(**{"max_tokens": 4, **sampling}))


def run(scheduler: Scheduler, token: int = 7) -> tuple[Batch, list[TokenOutput]]:
    batch = scheduler.schedule()
    count = sum(item.samples for item in batch.items)
    return batch, scheduler.postprocess(batch, [SampledToken(token)] * count)


def names(batch: Batch) -> list[tuple[str, int]]:
    return [(item.sequence.request.request_id, item.num_new_tokens) for item in batch.items]


def test_batch_is_ordered_by_adapter_pages_with_base_rows_last():
    scheduler = make()
    for name, adapter in [("r0", "b"), ("r1", ""), ("r2", "a"), ("r3", "b")]:
        scheduler.add(request(name, 3, adapter))
    batch, _ = run(scheduler)
    assert names(batch) == [("r0", 3), ("r3", 3), ("r2", 3), ("r1", 3)]
    spans = [(span.adapter_key, span.row_start, span.row_count) for span in batch.spans]
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


def test_a_loading_adapter_is_skipped_and_a_failed_one_ends_its_requests_only():
    gate = Gate(4)
    gate.loading, gate.broken = {"cold"}, {"bad"}
    scheduler = make(gate)
    for name, adapter in [("r0", "cold"), ("r1", "bad"), ("r2", ""), ("r3", "warm")]:
        scheduler.add(request(name, 4, adapter))
    batch, outputs = run(scheduler)
    assert names(batch) == [("r3", 4), ("r2", 4)]
    failed = [output for output in outputs if output.finish_reason is FinishReason.ERROR]
    assert [output.request_id for output in failed] == ["r1"]
    assert isinstance(failed[0].error, RequestError)
    gate.loading.clear()
    assert ("r0", 4) in names(run(scheduler)[0])


def test_a_starved_adapter_gets_its_turn_and_base_requests_never_wait():
    """Two adapters fill the pool and each always has somebody running."""
    scheduler = make(Gate(2), patience=3)
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


@pytest.mark.parametrize("seed", range(30))
def test_random_traces_end_every_request_once_and_leak_nothing(seed: int):
    rng = random.Random(seed)
    adapters = [f"a{i}" for i in range(8)]
    gate = Gate(5, {name: rng.randint(1, 4) for name in adapters})
    scheduler = make(
        gate, num_blocks=20, max_batch_prefill_tokens=rng.choice([8, 24, 64]), patience=4
    )
    ended: Counter[str] = Counter()
    live: list[str] = []
    for step in range(1500):
        if step < 250 and rng.random() < 0.4:
            name = f"r{step}"
            adapter = rng.choice(["", *adapters])
            scheduler.add(request(name, rng.randint(1, 40), adapter, max_tokens=rng.randint(1, 30)))
            live.append(name)
        if live and rng.random() < 0.05:
            scheduler.abort(rng.choice(live))
        gate.loading = set(rng.sample(adapters, 2)) if step < 250 else set()
        gate.broken = {"a7"} if 100 < step < 120 else set()
        _, outputs = run(scheduler, token=EOS if rng.random() < 0.1 else 7)
        ended.update(output.request_id for output in outputs if output.finish_reason)
        held = {block for sequence in scheduler.running for block in sequence.block_table}
        assert scheduler.blocks.num_free == 20 - len(held)
        busy = sum(bool(sequence.adapter_key) for sequence in scheduler.running)
        assert gate.slots.num_references == busy
    assert ended == Counter(live)
    assert len(scheduler) == 0
    assert scheduler.blocks.num_free == 20
