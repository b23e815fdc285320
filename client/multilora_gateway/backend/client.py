"""The Triton server behind the gateway: generations as gRPC streams, and the adapters model.

Laws: each generation has a gRPC stream of its own, so that leaving a stream ends one request and no
other, and hears of its tokens through one that all share. What the server is and holds is asked
when needed, and forgotten when the server or its engine goes away; an error about an adapter makes
the gateway forget nothing.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2_grpc

from multilora_api.admin import Origin
from multilora_api.tensors import ADMIN_MODEL, ENGINE_MODEL
from multilora_client.adapters.client import AsyncAdapters
from multilora_client.connection import Endpoint
from multilora_client.errors import MultiLoRAError, from_status
from multilora_client.tensors import Scalar
from multilora_gateway.backend.messages import (
    Delta,
    GenerationRequest,
    engine_request,
    gateway_error,
    is_lost,
    is_not_open,
)
from multilora_gateway.backend.retry_times import RetryTimes
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.backend.shared_stream import SharedStream
from multilora_gateway.backend.stream import EngineStream
from multilora_gateway.backend.watch import EngineWatch, ModelProbe
from multilora_gateway.errors import GatewayError, overloaded
from multilora_text.chat_template import NO_TEMPLATES, ChatTemplates

_TEMPLATE_SECONDS = 1.0  # a template is kept this long, so that changed files count within seconds
_MOST_TEMPLATES = 1024
_NAME_SECONDS = 2.0  # the answer whether a name is an adapter's is kept this long
_READY_SECONDS = 2.0
_DESCRIBE_SECONDS = 30.0
_AGAIN_SECONDS = 2.0
_STOP_SECONDS = 2.0
_CLOSE_SECONDS = 5.0
_TRIES = 4  # to reach a shared stream before it ends
_LOG = logging.getLogger("multilora.gateway")


class Backend:
    """A connection to one Triton server. Make a Backend inside the running event loop. Every method
    raises GatewayError. `admin_key` is the key for changing adapters that both were started with.
    """

    def __init__(self, url: str, admin_key: str = "") -> None:
        endpoint = Endpoint.parse(url)
        self.url = endpoint.address
        self._channel = endpoint.aio_channel()
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._adapters = AsyncAdapters(self._stub, ADMIN_MODEL, self.url, None, admin_key)
        self._base: asyncio.Task[ServedModel] | None = None  # shared by all callers
        self._templates: dict[str, tuple[float, ChatTemplates]] = {}
        self._names: dict[str, tuple[float, bool]] = {}
        self._probe = ModelProbe(self._stub, self.url)
        self._watch = EngineWatch(self._probe.ask)
        self._shared: SharedStream | None = None
        self._leaving: set[asyncio.Task[Any]] = set()  # read to their end, for nobody
        self.generating = 0  # how many generations run
        self._retry_times = RetryTimes()
        self._connection = asyncio.create_task(self._follow_connection())

    async def close(self) -> None:
        tasks = [self._connection, *([self._base] if self._base else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self._watch.close(), return_exceptions=True)
        if self._shared:
            await self._shared.close()
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=_CLOSE_SECONDS)
        await self._channel.close()

    async def generate(self, asked: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """The answer in deltas; closing the generator ends the request at once."""
        self.generating += 1
        said, tries = False, 0
        try:
            while True:
                shared, tries = await self._shared_stream(), tries + 1
                try:
                    async with aclosing(self._generate(asked, shared)) as deltas:
                        async for delta in deltas:
                            said = True
                            yield delta
                    return
                except MultiLoRAError as error:
                    # The shared stream may end, of no use, while a request is on its way to it.
                    if said or tries == _TRIES or not is_not_open(error):
                        raise
                    if self._shared is shared:
                        self._shared = None
        except grpc.aio.AioRpcError as error:
            lost = from_status(error.code(), error.details(), self.url)
            raise self._translated(lost, ENGINE_MODEL) from None
        except MultiLoRAError as error:
            raise self._translated(error, ENGINE_MODEL) from None
        finally:
            self.generating -= 1

    async def _generate(
        self, asked: GenerationRequest, shared: SharedStream
    ) -> AsyncGenerator[Delta, None]:
        """As `generate`; raises MultiLoRAError and AioRpcError, too."""
        request = engine_request(asked, shared.name)
        stream = EngineStream(
            self._stub.ModelStreamInfer(iter([request])),
            lambda: self._probe.stop(request.id, _STOP_SECONDS),
        )
        shared.join(request.id, stream, asked.logprobs)
        try:
            with self._watch.over(stream) as watched:
                async for delta in stream:
                    watched.heard = time.monotonic()
                    yield delta
            if not stream.complete:
                raise GatewayError(500, "incomplete_generation", "Incomplete generation")
        finally:
            shared.leave(request.id)
            if not stream.at_end:
                self._leave(asyncio.create_task(stream.leave()))

    async def _shared_stream(self) -> SharedStream:
        """One that is open."""
        while True:
            if self._shared is None or self._shared.is_over:
                self._shared = SharedStream(self._stub, self.url, self._watch, self._probe)
            shared = self._shared
            await shared.opened()
            if not shared.is_over:  # it may have broken while this task waited for its turn
                return shared

    async def adapters(
        self, action: str, timeout: float | None = None, **inputs: Scalar | None
    ) -> dict[str, Any]:
        """The answer of the Triton model `adapters` to an action. `timeout` is in seconds; None
        leaves the choice to the server."""
        question = asyncio.create_task(self._adapters.ask(action, timeout, **inputs))
        try:
            with self._watch.over(question):
                return await asyncio.shield(question)  # see EngineStream: no stream is cancelled
        except MultiLoRAError as error:
            raise self._translated(error, ADMIN_MODEL) from None
        finally:
            if not question.done():
                self._leave(question)

    async def base(self) -> ServedModel:
        """The base model that is being served."""
        if self._base is None:
            self._base = asyncio.create_task(self._describe())
            self._base.add_done_callback(self._described)
        return await asyncio.shield(self._base)

    async def templates(self, adapter_id: str, token: str = "") -> ChatTemplates:
        """An adapter's own chat templates.

        `token` opens a private Hub repository that has to be downloaded first. Templates that were
        read are told to every caller who may use the adapter, as the engine does.
        """
        if not adapter_id:
            return NO_TEMPLATES
        known = self._templates.get(adapter_id)
        if known and time.monotonic() - known[0] < _TEMPLATE_SECONDS:
            return known[1]
        answer = await self.adapters("template", adapter_id=adapter_id, adapter_token=token)
        templates = ChatTemplates.from_json(answer)
        self._templates.pop(adapter_id, None)
        self._templates[adapter_id] = (time.monotonic(), templates)
        if len(self._templates) > _MOST_TEMPLATES:
            self._templates.pop(next(iter(self._templates)))
        return templates

    async def has_adapter(self, name: str) -> bool:
        """Whether `name` is an adapter's; a new adapter counts within seconds. A name that only a
        pattern allows counts once its adapter has been read. Every name asked for is kept, so
        ask for few."""
        known = self._names.get(name)
        if known and time.monotonic() - known[0] < _NAME_SECONDS:
            return known[1]
        try:
            entry = await self.adapters("info", adapter_id=name)
            # An adapter on demand exists only if loading it succeeds.
            found = entry["origin"] != Origin.ON_DEMAND.value or entry["digest"] is not None
        except GatewayError as error:
            if error.status not in (404, 422):  # 422: no adapter can have such a name
                raise
            found = False
        self._names[name] = (time.monotonic(), found)
        return found

    def refusal(self) -> GatewayError:
        """The error for one request more than the server takes."""
        return overloaded(self._retry_times.next())

    async def is_ready(self) -> bool:
        """Whether the engine answers now."""
        try:
            await self._probe.ask(_READY_SECONDS)
        except MultiLoRAError as error:
            self._translated(error, ENGINE_MODEL)
            return False
        return True

    def _leave(self, task: asyncio.Task[Any]) -> None:
        self._leaving.add(task)
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[Any]) -> None:
        self._leaving.discard(task)
        if not task.cancelled():
            task.exception()  # nobody is left to be told of it

    async def _describe(self) -> ServedModel:
        description = await self.adapters("describe", _DESCRIBE_SECONDS)
        model = await asyncio.to_thread(ServedModel.from_json, description)
        self._retry_times.places = model.max_concurrent_requests
        return model

    def _described(self, task: asyncio.Task[ServedModel]) -> None:
        """Forgets a failure: later callers ask the server again."""
        if (task.cancelled() or task.exception()) and self._base is task:
            self._base = None

    async def _follow_connection(self) -> None:
        """Forgets the server at each new connection: the server may have come back as another one
        before the next request."""
        while True:
            try:
                return await self._forget_with_connection()
            except Exception:
                _LOG.exception("the connection could not be followed; it is tried again")
                await asyncio.sleep(_AGAIN_SECONDS)
                self._forget()  # a change meanwhile went unseen

    async def _forget_with_connection(self) -> None:
        state = self._channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.SHUTDOWN:
            await self._channel.wait_for_state_change(state)
            if state is grpc.ChannelConnectivity.READY:
                self._forget()
            state = self._channel.get_state(try_to_connect=True)

    def _forget(self) -> None:
        self._base = None
        self._templates.clear()
        self._names.clear()

    def _translated(self, error: MultiLoRAError, model: str) -> GatewayError:
        if is_lost(error):
            self._forget()  # the server may come back with another base
        translated = gateway_error(error, model)
        return self.refusal() if translated.status == 429 else translated
