"""Whether the engine, and `adapters` before it, still answer: who waits in vain is told so.

When the process of a Triton model dies, its Triton server lives on, and whoever waits for an answer
would wait for ever. Law: one that is merely slow, or loading an adapter, answers the probe.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from multilora_client.errors import MultiLoRAError, NotFound
from multilora_gateway.errors import GatewayError, unavailable

SILENT_SECONDS = 10.0  # so long nothing is heard before the Triton models are asked
LOOK_SECONDS = 2.5
_PROBE_SECONDS = 10.0
_LOG = logging.getLogger("multilora.gateway")


class _Cancellable(Protocol):
    def cancel(self) -> Any: ...


class Waiting:
    """One call that needs the Triton `models`. Whoever reads its answer sets `heard` to
    time.monotonic()."""

    def __init__(self, call: _Cancellable, models: Sequence[str]) -> None:
        self.models = models
        self.heard = time.monotonic()
        self.lost: GatewayError | None = None  # set before the watch cancels the call
        self._call = call

    def end(self, error: GatewayError) -> None:
        self.lost = error
        self._call.cancel()


class EngineWatch:
    """Make it inside the running event loop. `probe` takes a Triton model and seconds; it raises
    MultiLoRAError unless the model answers within them, NotFound when the server does not serve it
    any more."""

    def __init__(self, probe: Callable[[str, float], Awaitable[None]]) -> None:
        self._probe = probe
        self._waiting: set[Waiting] = set()
        self._task = asyncio.create_task(self._watch())  # one for all: no call pays for a timer

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @contextmanager
    def over(self, call: _Cancellable, *models: str) -> Iterator[Waiting]:
        """Within it, `call` is cancelled and GatewayError raised once one of `models` is gone."""
        waiting = Waiting(call, models)
        self._waiting.add(waiting)
        try:
            yield waiting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if waiting.lost is None or (task and task.cancelling()):
                raise
            raise waiting.lost from None
        finally:
            self._waiting.discard(waiting)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except Exception:
                _LOG.exception("the Triton server could not be watched; it is tried again")

    async def _look(self) -> None:
        since = time.monotonic() - SILENT_SECONDS
        silent = [each for each in self._waiting if each.heard < since]
        models = sorted({model for each in silent for model in each.models})
        answers = await asyncio.gather(*map(self._loss, models))
        lost = {model: error for model, error in zip(models, answers, strict=True) if error}
        now = time.monotonic()
        for each in silent:
            error = next((lost[model] for model in each.models if model in lost), None)
            if error is None:
                each.heard = max(each.heard, now)
            elif each.heard < since:
                each.end(error)

    async def _loss(self, model: str) -> GatewayError | None:
        try:
            await self._probe(model, _PROBE_SECONDS)
        except NotFound:  # the server is ending: what runs it lets run to its end
            pass
        except MultiLoRAError as error:
            return unavailable(
                f"the Triton model {model} does not answer any more ({error.message}); try again "
                "later"
            )
        return None
