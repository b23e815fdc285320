"""`lora_requests_info`: which adapters run and wait now, for the Kubernetes Gateway API Inference
Extension, as vLLM exposes it.

The labels are the message; the value is the time of the last change in seconds since 1970. The
reader takes the series with the largest value and splits the lists at commas.
"""

import time
from collections.abc import Iterable
from typing import Any

from multilora.metrics import AdapterFigures, adapter_label
from multilora.wire.series import Series

NAME = "lora_requests_info"
_HELP = "Adapters of running and of waiting requests; the value is the time of the last change"
_MAX_LIST = 4096  # characters


class LoraRequestsInfo:
    """Keeps the one series that holds what is true now."""

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
        fresh = Series(self._family, "gauge", NAME, _HELP, labels)
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
