"""The engine's figures and what clients experience, on the Triton server's /metrics.

`MetricFamily` is the Python backend's class of that name; it is handed in, so nothing here needs a
running server.

Laws, found out on a real server: two threads that use metrics at once take the server down.
Dropping a `Metric` removes nothing while its `MetricFamily` lives, and the server goes down when
two families of one name hold a `Metric` of the same labels and one is dropped. So each series has a
family object of its own (they appear as one), and no series is made before the one with its labels
is gone.
"""

import random
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from multilora.metrics import METRICS, AdapterFigures, adapter_label

INFO_NAME = "lora_requests_info"
_INFO_HELP = "Adapters of running and of waiting requests; the value is the time of the last change"
_MAX_LIST = 4096  # characters
_UPDATE_SECONDS = 0.5  # every changed value costs a message to the server process
_NEXT_TOKENS = 16  # observations in that time
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
        self._gaps: list[float] = []  # a fair sample of the seconds per token since the update
        self._num_gaps = 0
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
            "Time between output tokens of a request, after the first; a sample, up to 32 a second",
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
        """Kept for `tick`, maybe: each observation costs a message, and every stream asks for one
        in every pass. All have the same chance (Vitter's algorithm R)."""
        self._num_gaps += 1
        if len(self._gaps) < _NEXT_TOKENS:
            self._gaps.append(seconds / count)
        elif (place := random.randrange(self._num_gaps)) < _NEXT_TOKENS:
            self._gaps[place] = seconds / count

    def tick(self) -> None:
        """Send what has changed, at most twice a second."""
        now = time.monotonic()
        if now < self._next_update:
            return
        self._next_update = now + _UPDATE_SECONDS
        for seconds in self._gaps:
            self._next_token.observe(seconds)
        self._gaps, self._num_gaps = [], 0
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


class Series:
    """`family` is the Python backend's MetricFamily, `kind` "counter", "gauge" or "histogram"."""

    def __init__(
        self,
        family: Any,
        kind: str,
        name: str,
        help_: str,
        labels: Mapping[str, str],
        **options: Any,
    ) -> None:
        number = getattr(family, kind.upper())
        self._family = family(name=name, description=help_, kind=number)
        self._metric = self._family.Metric(labels=dict(labels), **options)
        self._is_counter = kind == "counter"
        self._sent = 0.0

    @property
    def value(self) -> float:
        """What was sent last."""
        return self._sent

    def send(self, value: float) -> None:
        """Only a change costs a message to the server process. A counter must not fall."""
        if value == self._sent:
            return
        if self._is_counter:
            self._metric.increment(value - self._sent)
        else:
            self._metric.set(value)
        self._sent = value

    def observe(self, value: float) -> None:
        """Of a histogram."""
        self._metric.observe(value)

    def drop(self) -> None:
        """Remove it from the server; nothing may be called afterwards."""
        del self._metric  # a metric must go before its family
        del self._family


class CounterSeries:
    """One counter per value of the label `adapter`."""

    def __init__(self, family: Any, name: str, help_: str, model: str) -> None:
        self._new = family, "counter", name, help_
        self._model = model
        self._series: dict[str, Series] = {}

    def send(self, values: Mapping[str, int]) -> None:
        """Make the series be those of `values`. One that has fallen starts anew."""
        for label, series in list(self._series.items()):
            if label not in values or values[label] < series.value:
                self._series.pop(label).drop()
        for label, value in values.items():
            series = self._series.get(label)
            if series is None:
                series = Series(*self._new, {"model": self._model, "adapter": label})
                self._series[label] = series
            series.send(value)

    def drop(self) -> None:
        while self._series:
            self._series.popitem()[1].drop()


class LoraRequestsInfo:
    """`lora_requests_info`: which adapters run and wait now, as vLLM exposes it.

    For the Kubernetes Gateway API Inference Extension. The labels are the message; the value is the
    time of the last change in seconds since 1970. The reader takes the series with the largest
    value and splits the lists at commas. Only the one series that is true now is kept.
    """

    def __init__(self, family: Any) -> None:
        self._family = family
        self._labels: dict[str, str] = {}
        self._series: Series | None = None

    def send(self, figures: AdapterFigures) -> None:
        labels = {
            "max_lora": str(figures.max_lora),
            "running_lora_adapters": _list(figures.running),
            "waiting_lora_adapters": _list(figures.waiting),
        }
        if labels == self._labels:
            return
        fresh = Series(self._family, "gauge", INFO_NAME, _INFO_HELP, labels)
        fresh.send(time.time())
        self.drop()  # after, so that a reader always finds one
        self._series, self._labels = fresh, labels

    def drop(self) -> None:
        if self._series is not None:
            self._series.drop()
        self._series, self._labels = None, {}


def _list(adapter_ids: Iterable[str]) -> str:
    """Sorted, whole ids only; one with a comma in it could not be told from two."""
    kept: list[str] = []
    room = _MAX_LIST
    for label in sorted({adapter_label(each) for each in adapter_ids if each and "," not in each}):
        room -= len(label) + bool(kept)
        if room < 0:
            break
        kept.append(label)
    return ",".join(kept)
