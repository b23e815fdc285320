"""Series on the Triton server's /metrics that come and go: one value under one set of labels.

Law, found out on a real server: dropping a `Metric` removes nothing while its `MetricFamily` lives,
and the server goes down when two families of one name hold a `Metric` of the same labels and one
is dropped. So each series has a family object of its own (they appear as one), and no series is
made before the one with its labels is gone.
"""

from collections.abc import Mapping
from typing import Any


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
