"""Ends calls that wait for a Triton model whose process has died.

The Triton server outlives such a process and still calls the model ready, so a call would wait for
ever. A probe tells a dead process from a slow one. Law: a living process answers the probe at once,
whatever else it does, also while it loads an adapter.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import grpc.aio

from multilora_api.tensors import ADMIN_MODEL, ENGINE_MODEL
from multilora_client.adapters.messages import admin_request, failure
from multilora_client.errors import InvalidRequest, MultiLoRAError, NotFound, from_status
from multilora_client.protocol import GenerationReply, stop_request
from multilora_gateway.errors import GatewayError, unavailable

SILENT_SECONDS = 10.0  # a call that hears nothing for this long has its Triton models probed
LOOK_SECONDS = 2.5  # between two looks at the calls
_PROBE_SECONDS = 10.0
_LOG = logging.getLogger("multilora.gateway")


class _Cancellable(Protocol):
    def cancel(self) -> Any: ...


class ModelProbe:
    """Asks the processes of Triton models whether they live. `stub` is of a connection to `url`."""

    def __init__(self, stub: Any, url: str) -> None:
        self._stub = stub
        self._url = url

    async def ask(self, model: str, seconds: float) -> None:
        """Raises MultiLoRAError unless ENGINE_MODEL or ADMIN_MODEL answers within `seconds`."""
        if model == ENGINE_MODEL:
            await self.stop(uuid.uuid4().hex, seconds)  # a request that does not run
        else:
            await self._ask_adapters(seconds)

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

    async def _ask_adapters(self, seconds: float) -> None:
        """Asks about an adapter without a name. The model `adapters` refuses that by itself:
        without the engine, without its threads, which may all be waiting, and without a failure
        in the Triton server's metrics."""
        try:
            await self._stub.ModelInfer(admin_request(ADMIN_MODEL, "info", {}), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            refusal = failure(error.code(), error.details(), self._url)
            if not isinstance(refusal, InvalidRequest):
                raise refusal from None


class WatchedCall:
    """A call that needs the Triton `models`. The reader of its answer sets `heard` to
    time.monotonic() whenever a message arrives."""

    def __init__(self, call: _Cancellable, models: Sequence[str]) -> None:
        self.models = models
        self.heard = time.monotonic()
        self.lost: GatewayError | None = None  # set before the watch cancels the call
        self._call = call

    def end(self, error: GatewayError) -> None:
        self.lost = error
        self._call.cancel()


class EngineWatch:
    """Ends the calls to dead Triton models. Make an EngineWatch inside the running event loop.

    `probe(model, seconds)` raises MultiLoRAError unless the Triton model answers in time, NotFound
    when the server no longer serves the model.
    """

    def __init__(self, probe: Callable[[str, float], Awaitable[None]]) -> None:
        self._probe = probe
        self._calls: set[WatchedCall] = set()
        self._task = asyncio.create_task(self._watch())  # one task: no call pays for a timer

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @contextmanager
    def over(self, call: _Cancellable, *models: str) -> Iterator[WatchedCall]:
        """While the context is open, the loss of one of `models` cancels `call` and raises
        GatewayError."""
        watched = WatchedCall(call, models)
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
        except NotFound:  # the server is stopping in order, and lets running requests end
            pass
        except MultiLoRAError as error:
            return unavailable(
                f"the Triton model {model} does not answer any more ({error.message}); try again "
                "later"
            )
        return None
