"""The engine's figures and what clients experience, on the Triton server's /metrics.

`MetricFamily` is the Python backend's class of that name; it is handed in, so nothing here needs a
running server.
"""

import time
from collections.abc import Callable
from typing import Any

from multilora.metrics import METRICS

_UPDATE_SECONDS = 0.5  # every changed value costs a message to the server process
_FIRST_TOKEN_BUCKETS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
_NEXT_TOKEN_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]


class TritonMetrics:
    """Implements the responder's Observer; used by its thread only."""

    def __init__(
        self, metric_family: Any, snapshot: Callable[[], dict[str, float]], model: str
    ) -> None:
        self._snapshot = snapshot
        self._sent = dict.fromkeys(METRICS, 0.0)
        self._next_update = 0.0
        self._families = []  # a family and its metrics live as long as a reference to it
        self._metrics = {
            name: self._metric(
                metric_family,
                metric_family.COUNTER if spec.counter else metric_family.GAUGE,
                name,
                spec.help,
                model,
            )
            for name, spec in METRICS.items()
        }
        self._first_token = self._metric(
            metric_family,
            metric_family.HISTOGRAM,
            "multilora_time_to_first_token_seconds",
            "Time from the arrival of a request to its first token",
            model,
            buckets=_FIRST_TOKEN_BUCKETS,
        )
        self._next_token = self._metric(
            metric_family,
            metric_family.HISTOGRAM,
            "multilora_time_per_output_token_seconds",
            "Time between output tokens of a request, after the first",
            model,
            buckets=_NEXT_TOKEN_BUCKETS,
        )

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
        for name, value in self._snapshot().items():
            change = value - self._sent[name]
            if not change:
                continue
            if METRICS[name].counter:
                self._metrics[name].increment(change)
            else:
                self._metrics[name].set(value)
            self._sent[name] = value

    def close(self) -> None:
        """Let go of every metric: one that outlives `finalize` crashes the Python backend."""
        self._metrics.clear()
        del self._first_token, self._next_token
        self._families.clear()

    def _metric(
        self, metric_family: Any, kind: Any, name: str, help_: str, model: str, **options: Any
    ) -> Any:
        family = metric_family(name=name, description=help_, kind=kind)
        self._families.append(family)
        return family.Metric(labels={"model": model}, **options)
