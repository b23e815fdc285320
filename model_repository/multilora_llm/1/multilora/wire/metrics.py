"""The engine's figures and what clients experience, on the Triton server's /metrics.

`MetricFamily` is the Python backend's class of that name; it is handed in, so nothing here needs a
running server.
"""

import time
from typing import Any, Protocol

from multilora.metrics import METRICS, AdapterFigures
from multilora.wire.lora_requests_info import LoraRequestsInfo
from multilora.wire.series import CounterSeries, Series

_UPDATE_SECONDS = 0.5  # every changed value costs a message to the server process
_FIRST_TOKEN_BUCKETS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
_NEXT_TOKEN_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]


class FigureSource(Protocol):
    """The side of the engine that is measured; called on the responder thread."""

    def metrics(self) -> dict[str, float]:
        """The figures of METRICS."""
        ...

    def adapter_figures(self) -> AdapterFigures: ...


class TritonMetrics:
    """Implements the responder's Observer; used by its thread only."""

    def __init__(self, metric_family: Any, source: FigureSource, model: str) -> None:
        self._source = source
        self._next_update = 0.0
        labels = {"model": model}
        self._figures = {
            name: Series(
                metric_family, "counter" if spec.counter else "gauge", name, spec.help, labels
            )
            for name, spec in METRICS.items()
        }
        self._first_token = Series(
            metric_family,
            "histogram",
            "multilora_time_to_first_token_seconds",
            "Time from the arrival of a request to its first token",
            labels,
            buckets=_FIRST_TOKEN_BUCKETS,
        )
        self._next_token = Series(
            metric_family,
            "histogram",
            "multilora_time_per_output_token_seconds",
            "Time between output tokens of a request, after the first",
            labels,
            buckets=_NEXT_TOKEN_BUCKETS,
        )
        self._requests = CounterSeries(
            metric_family,
            "multilora_adapter_requests_total",
            "Requests accepted for an adapter; _base is the base model, _other the sum of the rest",
            model,
        )
        self._tokens = CounterSeries(
            metric_family,
            "multilora_adapter_generated_tokens_total",
            "Tokens generated with an adapter; _base is the base model, _other the sum of the rest",
            model,
        )
        self._info = LoraRequestsInfo(metric_family)

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def next_tokens(self, count: int, seconds: float) -> None:
        """One observation, of the mean: observing each token would cost a message each."""
        self._next_token.observe(seconds / count)

    def tick(self) -> None:
        """Send what has changed, at most twice a second."""
        now = time.monotonic()
        if now < self._next_update:
            return
        self._next_update = now + _UPDATE_SECONDS
        for name, value in self._source.metrics().items():
            self._figures[name].send(value)
        figures = self._source.adapter_figures()
        self._requests.send(figures.requests)
        self._tokens.send(figures.tokens)
        self._info.send(figures)

    def close(self) -> None:
        """Let go of every metric: one that outlives `finalize` crashes the Python backend."""
        for series in (*self._figures.values(), self._first_token, self._next_token):
            series.drop()
        for several in (self._requests, self._tokens, self._info):
            several.drop()
        self._figures.clear()
