"""Figures of the engine as metrics of the Triton server, without one."""

from typing import Any

import pytest

from multilora import triton_metrics
from multilora.metrics import METRICS
from multilora.triton_metrics import TritonMetrics

GAUGE, COUNTER = "multilora_kv_blocks_used", "multilora_requests_total"


class FakeMetric:
    def __init__(self) -> None:
        self.value = 0.0
        self.observed: list[float] = []
        self.calls = 0

    def increment(self, change: float) -> None:
        assert change > 0  # the server refuses a counter that falls
        self.set(self.value + change)

    def set(self, value: float) -> None:
        self.value = value
        self.calls += 1

    def observe(self, value: float) -> None:
        self.observed.append(value)


class FakeFamily:
    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
    made: dict[str, tuple[str, FakeMetric]]

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name, self.kind = name, kind

    def Metric(self, labels: dict[str, str], buckets: Any = None) -> FakeMetric:
        assert labels == {"model": "llm"} and bool(buckets) == (self.kind == "histogram")
        metric = FakeMetric()
        self.made[self.name] = (self.kind, metric)
        return metric


def test_metrics_follow_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_metrics, "_UPDATE_SECONDS", 0.0)
    FakeFamily.made = {}
    figures = dict.fromkeys(METRICS, 0.0)
    metrics = TritonMetrics(FakeFamily, lambda: dict(figures), "llm")
    assert {kind for kind, _ in FakeFamily.made.values()} == {"counter", "gauge", "histogram"}
    for value in (5.0, 9.0, 9.0):
        figures |= {GAUGE: 10 - value, COUNTER: value}
        metrics.tick()
    assert FakeFamily.made[GAUGE][1].value == 1
    assert FakeFamily.made[COUNTER][1].value == 9
    assert FakeFamily.made[COUNTER][1].calls == 2  # only changes are sent
    metrics.first_token(0.25)
    metrics.next_tokens(4, 0.2)
    assert FakeFamily.made["multilora_time_to_first_token_seconds"][1].observed == [0.25]
    assert FakeFamily.made["multilora_time_per_output_token_seconds"][1].observed == [0.05]
