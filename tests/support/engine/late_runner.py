"""A device that answers later, without a GPU: a thread that computes the passes in turn."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from multilora.forward.runner import InFlight, ModelRunner
from multilora.request import PromptToken
from multilora.scheduling.batch import SampledToken


class LateInFlight(InFlight):
    def __init__(self, future: Future[InFlight]) -> None:
        self._future = future

    def tokens(self) -> list[SampledToken]:
        return self._future.result().tokens()

    def prompts(self) -> list[tuple[PromptToken, ...]]:
        return self._future.result().prompts()


class LateRunner(ModelRunner):
    """The thread alone computes and samples, after the host has gone on to make the next pass."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.depth = 2
        self.most_in_flight = 0
        self._launched = self._computed = 0
        self._thread = ThreadPoolExecutor(1, "late device")

    def _begin(self, run: Callable[[], InFlight]) -> InFlight:
        self._launched += 1
        self.most_in_flight = max(self.most_in_flight, self._launched - self._computed)
        return LateInFlight(self._thread.submit(self._compute, run))

    def _compute(self, run: Callable[[], InFlight]) -> InFlight:
        time.sleep(0.001)
        done = super()._begin(run)
        self._computed += 1
        return done
