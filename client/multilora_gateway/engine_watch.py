"""Whether the engine still answers: those who wait for it in vain are told so.

When the engine's process dies, the Triton server lives on, and whoever waits for an answer would
wait for ever. Law: an engine that is merely slow, or loading an adapter, answers the probe.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from multilora_client.errors import MultiLoRAError, NotFound
from multilora_gateway.errors import GatewayError, unavailable

SILENT_SECONDS = 10.0  # so long nothing is heard before the engine is asked
LOOK_SECONDS = 2.5
_PROBE_SECONDS = 10.0


class _Cancellable(Protocol):
    def cancel(self) -> Any: ...


class Waiting:
    """One call of the engine. Whoever reads its answer sets `heard` to time.monotonic()."""

    def __init__(self, call: _Cancellable) -> None:
        self.heard = time.monotonic()
        self.lost: GatewayError | None = None  # set before the watch cancels the call
        self._call = call

    def end(self, error: GatewayError) -> None:
        self.lost = error
        self._call.cancel()


class EngineWatch:
    """Make it inside the running event loop. `probe` takes seconds; it raises MultiLoRAError unless
    the engine answers within them, NotFound when the server does not serve it any more."""

    def __init__(self, probe: Callable[[float], Awaitable[None]]) -> None:
        self._probe = probe
        self._waiting: set[Waiting] = set()
        self._task = asyncio.create_task(self._watch())  # one for all: no call pays for a timer

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @contextmanager
    def over(self, call: _Cancellable) -> Iterator[Waiting]:
        """Within it, `call` is cancelled and GatewayError raised once the engine is gone."""
        waiting = Waiting(call)
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
            since = time.monotonic() - SILENT_SECONDS
            silent = [each for each in self._waiting if each.heard < since]
            if not silent:
                continue
            try:
                await self._probe(_PROBE_SECONDS)
            except NotFound:  # the server is ending: what runs it lets run to its end
                pass
            except MultiLoRAError as error:
                gone = unavailable(f"the engine does not answer any more ({error.message})")
                for each in silent:
                    if each.heard < since:
                        each.end(gone)
                continue
            now = time.monotonic()
            for each in silent:
                each.heard = max(each.heard, now)
