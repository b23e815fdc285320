"""A device that answers later, without a GPU: a thread that computes the passes in turn."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from multilora.forward.runner import InFlight, ModelRunner
from multilora.forward.sampler import Sampled
from multilora.scheduling.batch import BatchItem, SampledToken


class LateInFlight(InFlight):
    def __init__(self, future: Future[InFlight]) -> None:
        self._future = future

    def tokens(self) -> list[SampledToken]:
        return self._future.result().tokens()


class LateRunner(ModelRunner):
    """The thread alone computes and samples, after the host has gone on to make the next pass."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.depth = 2
        self.most_in_flight = 0
        self._launched = self._computed = 0
        self._thread = ThreadPoolExecutor(1, "late device")

    def _begin(self, items: Sequence[BatchItem], run: Callable[[], Sampled | None]) -> InFlight:
        self._launched += 1
        self.most_in_flight = max(self.most_in_flight, self._launched - self._computed)
        return LateInFlight(self._thread.submit(self._compute, items, run))

    def _compute(self, items: Sequence[BatchItem], run: Callable[[], Sampled | None]) -> InFlight:
        time.sleep(0.001)
        done = super()._begin(items, run)
        self._computed += 1
        return done
