"""Closed-loop traffic: a fixed number of requests in flight, the next one when one ends."""

import bisect
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.adapters.client import EngineClient, TimedAnswer, Work


@dataclass(frozen=True)
class LoopResult:
    """The answers of a closed loop, and the engine's counters from `begin` to `end`.

    The figures count the tokens and the requests of that time alone: `begin` is after a ramp, and
    `end` before fewer and fewer requests are in flight.
    """

    answers: list[TimedAnswer]
    begin: float
    end: float
    counters: dict[str, float]
    adapters_per_pass: float

    @property
    def first_tokens(self) -> list[float]:
        return [a.first_token for a in self.answers if self.begin <= a.submitted <= self.end]

    @property
    def tokens_per_second(self) -> float:
        count = sum(self.begin <= when <= self.end for a in self.answers for when in a.times)
        return count / (self.end - self.begin)

    def per_second(self, counter: str) -> float:
        return self.counters[f"multilora_{counter}_total"] / (self.end - self.begin)


def closed_loop(
    client: EngineClient, works: Iterator[Work], concurrency: int, seconds: float
) -> LoopResult:
    """Run requests and measure for `seconds`, after a ramp of a fifth of that time."""
    begin = time.perf_counter() + seconds / 5
    end = begin + seconds
    answers = [client.submit(next(works)) for _ in range(concurrency)]

    def go_on(until: float) -> None:
        while (left := until - time.perf_counter()) > 0:
            for _ in client.read(left):
                answers.append(client.submit(next(works)))

    go_on(begin)
    before, passes = client.engine.metrics(), len(client.adapters_per_pass)
    go_on(end)
    after, distinct = client.engine.metrics(), client.adapters_per_pass[passes:]
    client.finish(*answers)
    counters = {name: value - before[name] for name, value in after.items()}
    return LoopResult(answers, begin, end, counters, sum(distinct) / max(1, len(distinct)))


def round_robin(names: Sequence[str], prompt: int, tokens: int, seed: int) -> Iterator[Work]:
    """Output lengths vary by half around `tokens`, so that requests do not end all at once."""
    random = Random(seed)
    for name in itertools.cycle(names):
        yield Work(name, prompt, random.randint(tokens // 2, tokens + tokens // 2))


def power_law(names: Sequence[str], prompt: int, tokens: int, seed: int) -> Iterator[Work]:
    """The k-th name comes with a probability ∝ 1 / k (Zipf, exponent 1); lengths as above."""
    random = Random(seed)
    total = list(itertools.accumulate(1 / rank for rank in range(1, len(names) + 1)))
    while True:
        name = names[min(bisect.bisect(total, random.random() * total[-1]), len(names) - 1)]
        yield Work(name, prompt, random.randint(tokens // 2, tokens + tokens // 2))
