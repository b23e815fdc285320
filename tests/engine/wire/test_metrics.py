"""Figures of the engine as metrics of the Triton server, without one.

The Python backend's part is played by classes with its rules, as a real server showed them
(tests/e2e/test_series.py): a series goes when its metric *and* its family are dropped, and two
of the same labels end badly.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from multilora.metrics import METRICS, AdapterFigures
from multilora.wire import metrics as triton_metrics
from multilora.wire.metrics import TritonMetrics

GAUGE, COUNTER = "multilora_kv_blocks_used", "multilora_requests_total"
SECONDS = "multilora_adapter_read_seconds_total"
REQUESTS = "multilora_adapter_requests_total"
TOKENS = "multilora_adapter_generated_tokens_total"
FIRST, NEXT = "multilora_time_to_first_token_seconds", "multilora_time_per_output_token_seconds"
INFO = "lora_requests_info"

Key = tuple[str, tuple[tuple[str, str], ...]]


class Endpoint:
    """What /metrics shows, and what was sent to it."""

    def __init__(self) -> None:
        self.series: dict[Key, float] = {}
        self.kinds: dict[str, str] = {}
        self.observed: dict[str, list[float]] = {}
        self.messages = 0
        self.fewest_infos = 1  # seen while lora_requests_info changed

    def values(self, name: str, label: str = "adapter") -> dict[str, float]:
        return {
            dict(labels)[label]: value for (n, labels), value in self.series.items() if n == name
        }

    def infos(self) -> list[tuple[dict[str, str], float]]:
        return [(dict(labels), value) for (n, labels), value in self.series.items() if n == INFO]


class FakeMetric:
    def __init__(self, endpoint: Endpoint, key: Key) -> None:
        assert key not in endpoint.series, f"{key} is there already: the server would crash"
        self._endpoint, self.key = endpoint, key
        endpoint.series[key] = 0.0

    def increment(self, change: float) -> None:
        assert change > 0  # the server refuses a counter that falls
        self.set(self._endpoint.series[self.key] + change)

    def set(self, value: float) -> None:
        self._endpoint.series[self.key] = value
        self._endpoint.messages += 1

    def observe(self, value: float) -> None:
        self._endpoint.observed.setdefault(self.key[0], []).append(value)


class FakeFamily:
    """Holds its metrics, as the real one does: they end with it."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
    endpoint: Endpoint

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert description
        assert self.endpoint.kinds.setdefault(name, kind) == kind
        self._name, self._kind = name, kind
        self._metrics: list[FakeMetric] = []

    def Metric(self, labels: dict[str, str], buckets: Any = None) -> FakeMetric:
        assert bool(buckets) == (self._kind == "histogram")
        metric = FakeMetric(self.endpoint, (self._name, tuple(sorted(labels.items()))))
        self._metrics.append(metric)
        return metric

    def __del__(self) -> None:
        for metric in self._metrics:
            del self.endpoint.series[metric.key]
        if self._name == INFO:
            self.endpoint.fewest_infos = min(self.endpoint.fewest_infos, len(self.endpoint.infos()))


class FakeEngine:
    def __init__(self) -> None:
        self.values = dict.fromkeys(METRICS, 0.0)
        self.figures = AdapterFigures({}, {}, (), (), 64)

    def metrics(self) -> dict[str, float]:
        return dict(self.values)

    def adapter_figures(self) -> AdapterFigures:
        return self.figures

    def does(
        self,
        requests: dict[str, int] | None = None,
        tokens: dict[str, int] | None = None,
        running: tuple[str, ...] = (),
        waiting: tuple[str, ...] = (),
    ) -> None:
        self.figures = AdapterFigures(requests or {}, tokens or {}, running, waiting, 64)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(triton_metrics, "_UPDATE_SECONDS", 0.0)
    FakeFamily.endpoint = Endpoint()
    yield FakeFamily.endpoint


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def metrics(endpoint: Endpoint, engine: FakeEngine) -> TritonMetrics:
    return TritonMetrics(FakeFamily, engine, "llm")


def test_metrics_follow_the_engine(
    endpoint: Endpoint, engine: FakeEngine, metrics: TritonMetrics
) -> None:
    assert set(endpoint.kinds) == {*METRICS, FIRST, NEXT}
    assert endpoint.kinds[COUNTER] == "counter" and endpoint.kinds[GAUGE] == "gauge"
    metrics.tick()
    for value in (5.0, 9.0, 9.0):
        before = endpoint.messages
        engine.values |= {GAUGE: 10 - value, COUNTER: value, SECONDS: value / 4}
        metrics.tick()
    assert endpoint.messages == before  # only changes are sent
    assert endpoint.values(GAUGE, "model") == {"llm": 1}
    assert endpoint.values(COUNTER, "model") == {"llm": 9}
    assert endpoint.values(SECONDS, "model") == {"llm": 2.25}


def test_what_clients_experience(endpoint: Endpoint, metrics: TritonMetrics) -> None:
    metrics.first_token(0.25)
    metrics.next_tokens(4, 0.2)
    metrics.tick()
    assert endpoint.observed == {FIRST: [0.25], NEXT: [0.05]}


def test_of_many_gaps_some_are_observed_whenever_they_came(
    endpoint: Endpoint, metrics: TritonMetrics
) -> None:
    gaps = [float(number) for number in range(1000)]
    for seconds in gaps:
        metrics.next_tokens(1, seconds)
    metrics.tick()
    observed = endpoint.observed[NEXT]
    assert len(observed) == len(set(observed)) == 16 and set(observed) <= set(gaps)
    assert sum(observed) / 16 > 100  # the first ones alone: 7.5


def test_adapters_have_counters_that_come_and_go(
    endpoint: Endpoint, engine: FakeEngine, metrics: TritonMetrics
) -> None:
    engine.does({"_base": 1, "a": 2}, {"_base": 7, "a": 0})
    metrics.tick()
    assert endpoint.values(REQUESTS) == {"_base": 1, "a": 2}
    assert endpoint.values(TOKENS) == {"_base": 7, "a": 0}
    assert set(endpoint.values(REQUESTS, "model")) == {"llm"}
    engine.does({"_base": 3, "b": 1}, {"_base": 9, "b": 5})
    metrics.tick()
    assert endpoint.values(REQUESTS) == {"_base": 3, "b": 1}
    assert endpoint.values(TOKENS) == {"_base": 9, "b": 5}


def test_a_counter_that_began_anew_between_two_looks(
    endpoint: Endpoint, engine: FakeEngine, metrics: TritonMetrics
) -> None:
    for requests in (5, 2, 4):
        engine.does({"a": requests}, {"a": requests})
        metrics.tick()
        assert endpoint.values(REQUESTS) == {"a": requests}


def test_lora_requests_info_is_one_series_of_now(
    endpoint: Endpoint, engine: FakeEngine, metrics: TritonMetrics
) -> None:
    metrics.tick()
    begin = time.time()
    engine.does(running=("b", "a", ""), waiting=("c",))
    metrics.tick()
    ((labels, changed),) = endpoint.infos()
    assert labels == {
        "max_lora": "64",
        "running_lora_adapters": "a,b",
        "waiting_lora_adapters": "c",
    }
    assert begin <= changed <= time.time()
    metrics.tick()
    assert endpoint.infos() == [(labels, changed)]  # the time of the last change
    engine.does(running=("c",))
    metrics.tick()
    ((labels, later),) = endpoint.infos()
    assert labels["running_lora_adapters"] == "c" and not labels["waiting_lora_adapters"]
    assert later > changed
    assert endpoint.fewest_infos == 1  # whoever looked meanwhile found one


def test_lists_of_adapters_are_bounded_and_can_be_split(
    endpoint: Endpoint, engine: FakeEngine, metrics: TritonMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_metrics, "_MAX_LIST", 9)  # characters, commas included
    engine.does(running=("ee", "é\n", "aa,bb", "dddd", "cc"), waiting=("aaaaaa", "bbbbbb"))
    metrics.tick()
    ((labels, _),) = endpoint.infos()
    assert labels["running_lora_adapters"] == "cc,dddd"
    assert labels["waiting_lora_adapters"] == "aaaaaa"


def test_closing_lets_go_of_everything(
    endpoint: Endpoint, engine: FakeEngine, metrics: TritonMetrics
) -> None:
    engine.does({"a": 1}, {"a": 1}, ("a",))
    metrics.tick()
    metrics.close()
    assert not endpoint.series
