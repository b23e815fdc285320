"""Time to the first token of an adapter that was never read, and of one that stands in the pool."""

import time

from benchmarks.adapters.checkpoint import adapter_name
from benchmarks.adapters.client import EngineClient, Work, serving
from benchmarks.adapters.plan import BenchmarkPlan
from benchmarks.common.statistics import Figure, Ratio, Result, median

_ROOM = 16  # adapters in the pool: before the first pair it is full, so every load evicts
_PAUSE_SECONDS = 0.05  # between requests: the server is idle


def measure_cold(plan: BenchmarkPlan) -> Result:
    """Interleaved pairs: one request for a cold adapter, one for the warm one."""
    first = 1 + _ROOM
    config = plan.config(first + plan.pairs, room=_ROOM, host_room=_ROOM)
    with serving(config) as client:
        for index in range(1, first):
            _first_token(client, plan, index)
        _first_token(client, plan, 0)
        cold: list[float] = []
        warm: list[float] = []
        for index in range(first, first + plan.pairs):
            cold.append(_first_token(client, plan, index))
            warm.append(_first_token(client, plan, 0))
        reads = client.engine.metrics()["multilora_adapter_reads_total"]
    return _result(plan, cold, warm, reads / (first + plan.pairs))


def _first_token(client: EngineClient, plan: BenchmarkPlan, index: int) -> float:
    time.sleep(_PAUSE_SECONDS)
    return client.run(Work(adapter_name(index), plan.prompt, 1)).first_token


def _result(plan: BenchmarkPlan, cold: list[float], warm: list[float], reads: float) -> Result:
    ratio, floor = Ratio.of(cold, warm), plan.floor()
    warm_ms, cold_ms = median(warm) * 1000, median(cold) * 1000
    figure = Figure(
        "1 cold / warm first token",
        ratio,
        base=f"{cold_ms:.1f} / {warm_ms:.1f} ms",
        samples=f"{len(cold)} pairs",
        target=1.3,
        floor=1 + floor.load / median(warm),
    )
    note = (
        f"Idle server, prompts of {plan.prompt} random tokens, one token each. Cold: on disk and "
        "in the page cache, never read by this server; the pool is full, so each load also evicts. "
        f"The difference is {cold_ms - warm_ms:.1f} ms; its floor, measured in the same run by one "
        f"thread: {floor}. {reads:.2f} reads per adapter."
    )
    samples = {"cold": cold, "warm": warm}
    return Result("First token of a cold adapter", [figure], samples, note)
