"""Time to the first token when twice as many adapters are in use as the pool has room for."""

from benchmarks.adapters.checkpoint import adapter_name
from benchmarks.adapters.client import BenchmarkError, EngineClient, Work, serving
from benchmarks.adapters.closed_loop import LoopResult, closed_loop, round_robin
from benchmarks.adapters.plan import BenchmarkPlan
from benchmarks.common.statistics import Figure, Ratio, Result, median

_ROOM = 8
_ADAPTERS = 2 * _ROOM


def measure_room(plan: BenchmarkPlan) -> Result:
    """Phases with 16 and with 8 adapters take turns on one server with room for 8."""
    crowded: list[LoopResult] = []
    roomy: list[LoopResult] = []
    with serving(plan.config(_ADAPTERS, room=_ROOM, host_room=2 * _ADAPTERS)) as client:
        pages = client.engine.metrics()["multilora_adapter_pages"]
        if pages != _ROOM:
            raise BenchmarkError(f"the pool has {pages} pages, not {_ROOM}")
        for index in range(_ADAPTERS):
            client.run(Work(adapter_name(index), plan.prompt, 1))
        for seed in range(plan.room_rounds):
            crowded.append(_phase(client, plan, _ADAPTERS, seed))
            roomy.append(_phase(client, plan, _ROOM, seed))
    return _result(plan, crowded, roomy)


def _phase(client: EngineClient, plan: BenchmarkPlan, adapters: int, seed: int) -> LoopResult:
    names = [adapter_name(index) for index in range(adapters)]
    works = round_robin(names, plan.prompt, plan.room_tokens, seed)
    return closed_loop(client, works, plan.concurrency, plan.room_seconds)


def _result(plan: BenchmarkPlan, crowded: list[LoopResult], roomy: list[LoopResult]) -> Result:
    above = [median(traffic.first_tokens) for traffic in crowded]
    below = [median(traffic.first_tokens) for traffic in roomy]
    floor = plan.floor()
    figure = Figure(
        "3 first token, 16 adapters / 8, room for 8",
        Ratio.of(above, below),
        base=f"{median(above) * 1000:.1f} / {median(below) * 1000:.1f} ms",
        samples=f"{len(above)} phases, {_count(crowded)} / {_count(roomy)} requests",
        target=1.5,
        floor=1 + floor.copy / median(below),
    )
    speed = [median([t.tokens_per_second for t in kind]) for kind in (crowded, roomy)]
    loads = [median([t.per_second("adapter_loads") for t in kind]) for kind in (crowded, roomy)]
    note = (
        f"Round-robin, closed loop with {plan.concurrency} requests in flight, prompts of "
        f"{plan.prompt} tokens, answers of about {plan.room_tokens}; all 16 fit in host memory. "
        f"16 adapters: {loads[0]:.1f} copies into the pool per second, {speed[0]:.0f} tokens/s; "
        f"8: {loads[1]:.1f} and {speed[1]:.0f}. The floor is one plain copy of an adapter "
        f"({floor.copy * 1000:.1f} ms) on top of the first token with 8."
    )
    samples = {"16 adapters": _all(crowded), "8 adapters": _all(roomy)}
    return Result("More adapters than room", [figure], samples, note)


def _all(phases: list[LoopResult]) -> list[float]:
    return [seconds for traffic in phases for seconds in traffic.first_tokens]


def _count(phases: list[LoopResult]) -> int:
    return len(_all(phases))
