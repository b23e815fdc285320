"""Ends calls that wait for an engine whose process has died.

The Triton server outlives such a process and still calls the model ready, so a call would wait for
ever. A probe tells a dead process from a slow one. Law: a living process answers the probe at once,
whatever else it does, also while it loads an adapter.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import grpc.aio

from multilora_api.tensors import ENGINE_MODEL
from multilora_client.errors import MultiLoRAError, NotFound, from_status
from multilora_client.protocol import GenerationReply, stop_request
from multilora_gateway.errors import GatewayError, unavailable

SILENT_SECONDS = 10.0  # a call that hears nothing for this long has its Triton models probed
LOOK_SECONDS = 2.5  # between two looks at the calls
_PROBE_SECONDS = 10.0
_LOG = logging.getLogger("multilora.gateway")


class _Cancellable(Protocol):
    def cancel(self) -> Any: ...


class ModelProbe:
    """Asks the engine whether it lives. `stub` is of a connection to `url`."""

    def __init__(self, stub: Any, url: str) -> None:
        self._stub = stub
        self._url = url

    async def ask(self, seconds: float) -> None:
        """Raises MultiLoRAError unless the engine answers within `seconds`."""
        await self.stop(uuid.uuid4().hex, seconds)  # a request that does not run

    async def stop(self, request_id: str, seconds: float) -> None:
        """Tell the engine to end a request; raises MultiLoRAError unless it agrees in time."""
        answer = GenerationReply()
        request = stop_request(ENGINE_MODEL, request_id)
        try:
            async for message in self._stub.ModelStreamInfer(iter([request]), timeout=seconds):
                answer.push(message)
        except grpc.aio.AioRpcError as error:
            raise from_status(error.code(), error.details(), self._url) from None
        answer.check_complete()


class WatchedCall:
    """A call that needs the engine. The reader of its answer sets `heard` to time.monotonic()
    whenever a message arrives."""

    def __init__(self, call: _Cancellable) -> None:
        self.heard = time.monotonic()
        self.lost: GatewayError | None = None  # set before the watch cancels the call
        self._call = call

    def end(self, error: GatewayError) -> None:
        self.lost = error
        self._call.cancel()


class EngineWatch:
    """Ends the calls to a dead engine. Make an EngineWatch inside the running event loop.

    `probe(seconds)` raises MultiLoRAError unless the engine answers in time, NotFound when the
    server no longer serves it.
    """

    def __init__(self, probe: Callable[[float], Awaitable[None]]) -> None:
        self._probe = probe
        self._calls: set[WatchedCall] = set()
        self._task = asyncio.create_task(self._watch())  # one task: no call pays for a timer

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @contextmanager
    def over(self, call: _Cancellable) -> Iterator[WatchedCall]:
        """While it is open, the loss of the engine cancels `call` and raises GatewayError."""
        watched = WatchedCall(call)
        self._calls.add(watched)
        try:
            yield watched
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if watched.lost is None or (task and task.cancelling()):
                raise
            raise watched.lost from None
        finally:
            self._calls.discard(watched)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except Exception:
                _LOG.exception("the Triton server could not be watched; it is tried again")

    async def _look(self) -> None:
        since = time.monotonic() - SILENT_SECONDS
        silent = [each for each in self._calls if each.heard < since]
        error = await self._loss() if silent else None
        now = time.monotonic()
        for each in silent:
            if error is None:
                each.heard = max(each.heard, now)
            elif each.heard < since:
                each.end(error)

    async def _loss(self) -> GatewayError | None:
        try:
            await self._probe(_PROBE_SECONDS)
        except NotFound:  # the server is stopping in order, and lets running requests end
            pass
        except MultiLoRAError as error:
            return unavailable(
                f"the Triton model {ENGINE_MODEL} does not answer any more ({error.message}); try "
                "again later"
            )
        return None
