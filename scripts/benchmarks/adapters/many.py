"""Throughput with thousands of adapters under power-law traffic, and with five.

A third kind of phase, as many adapters as the pool holds, tells two costs apart: that of more
different adapters in one forward pass, and that of loads.
"""

import os

from benchmarks.adapters.checkpoint import adapter_name
from benchmarks.adapters.client import EngineClient, Work, serving
from benchmarks.adapters.closed_loop import LoopResult, closed_loop, power_law
from benchmarks.adapters.plan import BenchmarkPlan
from benchmarks.common.statistics import Figure, Ratio, Result, median

FEW = 5


def measure_many(plan: BenchmarkPlan) -> Result:
    """Each phase has a server of its own: what five adapters get must not pay for 2000."""
    kinds = (plan.many, plan.many_room, FEW)
    phases: dict[int, list[LoopResult]] = {kind: [] for kind in kinds}
    for seed in range(plan.many_rounds):
        for kind in kinds:
            phases[kind].append(_phase(plan, kind, seed))
    return _result(plan, phases)


def _phase(plan: BenchmarkPlan, adapters: int, seed: int) -> LoopResult:
    config = plan.config(adapters, room=plan.many_room, host_room=plan.many_host)
    names = [adapter_name(index) for index in range(adapters)]
    with serving(config, seed) as client:
        _fill(client, names[: plan.many_host])
        works = power_law(names, plan.many_prompt, plan.many_tokens, seed)
        return closed_loop(client, works, plan.many_concurrency, plan.many_seconds)


def _fill(client: EngineClient, names: list[str]) -> None:
    """Bring the tiers near to what lasting traffic would leave in them: popular names last."""
    waiting = [Work(name, 1, 1) for name in reversed(names)]
    for begin in range(0, len(waiting), 8):
        client.finish(*[client.submit(work) for work in waiting[begin : begin + 8]])


def _result(plan: BenchmarkPlan, phases: dict[int, list[LoopResult]]) -> Result:
    speeds = {kind: [t.tokens_per_second for t in ts] for kind, ts in phases.items()}
    samples = f"{plan.many_rounds} phases of {plan.many_seconds:g} s"

    def figure(name: str, above: int, below: int, target: float | None = None) -> Figure:
        return Figure(
            name,
            Ratio.of(speeds[above], speeds[below]),
            base=f"{median(speeds[above]):.0f} / {median(speeds[below]):.0f} tokens/s",
            samples=samples,
            target=target,
            at_most=False,
            floor=_floor(plan, phases[above]) if target else None,
        )

    many, room = plan.many, plan.many_room
    figures = [
        figure(f"4 throughput, {many} adapters / {FEW}", many, FEW, target=0.97),
        figure(f"  {many} adapters / {room} that fit in the pool", many, room),
        figure(f"  {room} that fit in the pool / {FEW}", room, FEW),
    ]
    per_kind = "; ".join(_describe(kind, phases[kind]) for kind in phases)
    note = (
        f"Closed loop with {plan.many_concurrency} requests in flight, Zipf of exponent 1, prompts "
        f"of {plan.many_prompt} tokens, answers of about {plan.many_tokens}; room for "
        f"{plan.many_room} adapters in the pool and {plan.many_host} in host memory. {per_kind}. "
        "The floor takes away from five adapters' throughput only the processor time of the loads: "
        "read, SHA-256 and plain copies."
    )
    named = {f"{kind} adapters": values for kind, values in speeds.items()}
    return Result("Thousands of adapters", figures, named, note)


def _floor(plan: BenchmarkPlan, phases: list[LoopResult]) -> float:
    """The share of all cores that the loads leave."""
    floor = plan.floor()
    reads = median([traffic.per_second("adapter_reads") for traffic in phases])
    loads = median([traffic.per_second("adapter_loads") for traffic in phases])
    busy = reads * (floor.load - floor.copy) + loads * floor.copy
    return max(0.0, 1 - busy / (os.cpu_count() or 1))


def _describe(kind: int, phases: list[LoopResult]) -> str:
    distinct = median([traffic.adapters_per_pass for traffic in phases])
    reads = median([traffic.per_second("adapter_reads") for traffic in phases])
    loads = median([traffic.per_second("adapter_loads") for traffic in phases])
    per_pass = median(
        [t.per_second("generated_tokens") / max(1e-9, t.per_second("steps")) for t in phases]
    )
    return (
        f"{kind} adapters: {distinct:.1f} different ones and {per_pass:.1f} tokens in a pass, "
        f"{loads:.1f} copies into the pool and {reads:.1f} reads from disk per second"
    )
