"""Time between tokens of running streams, while cold adapters load and while none do.

Four kinds of phases take turns, each with streams of its own that start anew:
loading   requests (a token in, a token out) for cold adapters, one after another;
warm      the same requests at the same moments, all for one warm adapter;
reading   an administrator loads cold adapters one after another, no requests;
quiet     only the streams, as long as the loading.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.adapters.checkpoint import adapter_name
from benchmarks.adapters.client import BenchmarkError, EngineClient, Work, serving
from benchmarks.adapters.plan import BenchmarkPlan
from benchmarks.common.statistics import Figure, Ratio, Result, median, percentile
from multilora.adapters.admin.command import AdminCommand

_ROOM = 32  # adapters in the pool; full before the first phase
_LEAD_TOKENS = 8  # of every stream before a phase begins
KINDS = ("loading", "warm", "reading", "quiet")


@dataclass(frozen=True)
class Phase:
    """`starts`: when each request was made, in seconds since the phase began; all in seconds."""

    gaps: list[float]
    starts: list[float]
    first_tokens: list[float]
    seconds: float

    @property
    def p99(self) -> float:
        return percentile(self.gaps, 99)


@dataclass
class Rounds:
    """The phases of each kind, by round."""

    phases: dict[str, list[Phase]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def p99s(self, kind: str) -> list[float]:
        return [phase.p99 for phase in self.phases[kind]]

    def gaps(self, kind: str) -> list[float]:
        return [gap for phase in self.phases[kind] for gap in phase.gaps]

    def first_tokens(self, kind: str) -> list[float]:
        return [seconds for phase in self.phases[kind] for seconds in phase.first_tokens]


def measure_streams(plan: BenchmarkPlan) -> Result:
    """Rounds of the three kinds of phases."""
    warm, cold = plan.streams, plan.streams + 1
    total = cold + _ROOM + 2 * plan.stream_rounds * plan.loads
    rounds = Rounds()
    with serving(plan.config(total, room=_ROOM, host_room=2 * _ROOM)) as client:
        for index in range(cold + _ROOM):
            client.run(Work(adapter_name(index), 1, 1))
        names = iter([adapter_name(index) for index in range(cold + _ROOM, total)])
        for _ in range(plan.stream_rounds):
            _round(client, plan, names, adapter_name(warm), rounds)
    return _result(plan, rounds)


def _round(
    client: EngineClient, plan: BenchmarkPlan, cold: Iterator[str], warm: str, rounds: Rounds
) -> None:
    loading = _phase(client, plan, [(next(cold), 0.0) for _ in range(plan.loads)])
    again = [(warm, start) for start in loading.starts]
    client.run(Work(warm, 1, 1))
    rounds.phases["loading"].append(loading)
    rounds.phases["warm"].append(_phase(client, plan, again, loading.seconds))
    names = [next(cold) for _ in range(plan.loads)]
    rounds.phases["reading"].append(_phase(client, plan, [], loads=names))
    rounds.phases["quiet"].append(_phase(client, plan, [], loading.seconds))


def _phase(
    client: EngineClient,
    plan: BenchmarkPlan,
    requests: list[tuple[str, float]],
    seconds: float = 0.0,
    loads: Sequence[str] = (),
) -> Phase:
    """`requests` are made one after another, none before its moment, then `loads`; at least
    `seconds`."""
    streams = [
        client.submit(Work(adapter_name(index), plan.prompt, plan.stream_tokens))
        for index in range(plan.streams)
    ]
    while min(len(stream.times) for stream in streams) < _LEAD_TOKENS:
        client.read()
    begin = time.perf_counter()
    answers = []
    for name, start in requests:
        client.read_until(begin + start)
        answers.append(client.run(Work(name, 1, 1)))
    for name in loads:
        loaded = client.engine.admin.execute(AdminCommand("load", name), timeout=60)
        while not loaded.done():
            client.read()
        loaded.result()
    client.read_until(begin + seconds)
    end = time.perf_counter()
    if any(stream.ended for stream in streams):
        raise BenchmarkError("a stream ended before its phase did; raise stream_tokens")
    client.abort(*streams)
    return Phase(
        gaps=[gap for stream in streams for gap in stream.gaps(begin, end)],
        starts=[answer.submitted - begin for answer in answers],
        first_tokens=[answer.first_token for answer in answers],
        seconds=end - begin,
    )


def _result(plan: BenchmarkPlan, rounds: Rounds) -> Result:
    loading, warm, reading, quiet = (rounds.p99s(kind) for kind in KINDS)
    samples = f"{plan.stream_rounds} rounds, {len(rounds.gaps('loading'))} gaps each"
    figures = [
        Figure(
            f"2 p99 between tokens, {plan.loads} cold requests / warm ones",
            Ratio.of(loading, warm),
            base=f"{median(loading) * 1000:.1f} / {median(warm) * 1000:.1f} ms",
            samples=samples,
            target=1.1,
            floor=1.0,
        ),
        Figure(
            f"2 p99 between tokens, {plan.loads} loads alone / quiet",
            Ratio.of(reading, quiet),
            base=f"{median(reading) * 1000:.1f} / {median(quiet) * 1000:.1f} ms",
            samples=f"{plan.stream_rounds} rounds, {len(rounds.gaps('reading'))} gaps",
            target=1.1,
            floor=1.0,
        ),
        Figure(
            "  cold requests / quiet",
            Ratio.of(loading, quiet),
            base=f"{median(loading) * 1000:.1f} / {median(quiet) * 1000:.1f} ms",
            samples=samples,
        ),
    ]
    gaps = {kind: rounds.gaps(kind) for kind in KINDS}
    return Result("Running streams while adapters load", figures, gaps, _note(plan, rounds))


def _note(plan: BenchmarkPlan, rounds: Rounds) -> str:
    half = ", ".join(f"{kind} {median(rounds.gaps(kind)) * 1000:.1f} ms" for kind in KINDS)
    cold = median(rounds.first_tokens("loading")) * 1000
    warm = median(rounds.first_tokens("warm")) * 1000
    return (
        f"{plan.streams} streams of as many adapters. A loading phase makes {plan.loads} requests "
        "for cold adapters, one after another; a warm phase makes the same requests at the same "
        "moments for one warm adapter, so what differs is the loads'; in a reading phase an "
        f"administrator loads {plan.loads} into host memory, without requests; a quiet phase has "
        "the streams alone. A request is one token in and one out, a row more in one pass. The p99 "
        "is that of all gaps of a phase, a ratio is that of two phases of one round. "
        f"Median between tokens: {half}. First token of a request beside the streams: cold "
        f"{cold:.0f} ms, warm {warm:.0f} ms."
    )
