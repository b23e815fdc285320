"""The Triton server behind the gateway: generations as gRPC streams, and the adapters model.

Laws: one gRPC stream a generation, so that closing one cancels that request and no other; what the
server is and holds is asked for when it is needed and forgotten when the server goes away.
"""

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2_grpc

from multilora_client.adapters_aio import AsyncAdapters
from multilora_client.connection import Endpoint
from multilora_client.errors import MultiLoRAError, from_status
from multilora_client.protocol import Reply, stop_request
from multilora_client.tensors import Scalar
from multilora_gateway.base_model import BaseModel
from multilora_gateway.engine_messages import ENGINE, engine_request, gateway_error, piece_of
from multilora_gateway.engine_watch import EngineWatch
from multilora_gateway.errors import GatewayError
from multilora_gateway.generation import Answer, Call, Piece
from multilora_text.chat_template import ChatTemplate

ADAPTERS = "adapters"
_ON_DEMAND = "on demand"  # the origin of an adapter that a request may name, if there is one
_TEMPLATE_SECONDS = 1.0  # how long a template is believed: files that change count within seconds
_MOST_TEMPLATES = 1024
_NAME_SECONDS = 2.0  # how long it is believed that a name is an adapter's, or none's
_READY_SECONDS = 2.0
_DESCRIBE_SECONDS = 30.0


class Backend:
    """Make it inside the running event loop. Every method raises GatewayError."""

    def __init__(self, url: str) -> None:
        endpoint = Endpoint.parse(url)
        self.url = endpoint.address
        self._channel = endpoint.aio_channel()
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._adapters = AsyncAdapters(self._stub, ADAPTERS, self.url, None)
        self._base: asyncio.Task[BaseModel] | None = None  # one question for all who ask at once
        self._templates: dict[str, tuple[float, ChatTemplate | None]] = {}
        self._names: dict[str, tuple[float, bool]] = {}
        self._watch = EngineWatch(self._probe)
        self._connection = asyncio.create_task(self._follow_connection())

    async def close(self) -> None:
        tasks = [self._connection, *([self._base] if self._base else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self._watch.close(), return_exceptions=True)
        await self._channel.close()

    async def generate(self, call: Call) -> AsyncGenerator[Piece, None]:
        """The answer in pieces; closing the generator cancels the request at once."""
        stream = self._stub.ModelStreamInfer(iter([engine_request(call)]))
        wanted = call.sampling.get("logprobs") is not None
        complete = False
        try:
            with self._watch.over(stream) as waiting:
                async for message in stream:
                    waiting.heard = time.monotonic()
                    piece = piece_of(message, wanted)
                    complete = complete or piece.finish_reason is not None
                    yield piece
            if not complete:
                raise GatewayError(500, "incomplete_generation", "Incomplete generation")
        except grpc.aio.AioRpcError as error:
            lost = from_status(error.code(), error.details(), self.url)
            raise self._translated(lost) from None
        except MultiLoRAError as error:
            raise self._translated(error) from None
        finally:
            if not complete:
                stream.cancel()

    async def collect(self, call: Call) -> Answer:
        """The whole answer."""
        async with aclosing(self.generate(call)) as pieces:
            return Answer.joined([piece async for piece in pieces])

    async def adapters(
        self, action: str, timeout: float | None = None, **inputs: Scalar | None
    ) -> dict[str, Any]:
        """What the Triton model `adapters` answers; `timeout` in seconds, None is the server's."""
        question = asyncio.ensure_future(self._adapters.ask(action, timeout, **inputs))
        try:
            with self._watch.over(question):
                return await question
        except MultiLoRAError as error:
            raise self._translated(error) from None

    async def base(self) -> BaseModel:
        """The base model that is being served."""
        if self._base is None:
            self._base = asyncio.create_task(self._describe())
            self._base.add_done_callback(self._described)
        return await asyncio.shield(self._base)

    async def template(self, adapter_id: str, token: str = "") -> ChatTemplate | None:
        """An adapter's own chat template; None: it uses the base model's.

        `token` opens a private Hub repository that has to be downloaded first. Once the engine has
        read one, it tells everybody who may use the adapter, and so does this.
        """
        if not adapter_id:
            return None
        known = self._templates.get(adapter_id)
        if known and time.monotonic() - known[0] < _TEMPLATE_SECONDS:
            return known[1]
        answer = await self.adapters("template", adapter_id=adapter_id, adapter_token=token)
        source = answer["chat_template"]
        template = ChatTemplate(source, answer["special_tokens"]) if source else None
        self._templates.pop(adapter_id, None)
        self._templates[adapter_id] = (time.monotonic(), template)
        if len(self._templates) > _MOST_TEMPLATES:
            self._templates.pop(next(iter(self._templates)))
        return template

    async def has_adapter(self, name: str) -> bool:
        """Whether an adapter is called that; one that appears counts within seconds. A name that
        only a pattern allows is none before it has been read. Ask for few names: all are kept."""
        known = self._names.get(name)
        if known and time.monotonic() - known[0] < _NAME_SECONDS:
            return known[1]
        try:
            entry = await self.adapters("info", adapter_id=name)
            found = entry["origin"] != _ON_DEMAND or entry["digest"] is not None
        except GatewayError as error:
            if error.status not in (404, 422):  # unknown, or what no adapter can be called
                raise
            found = False
        self._names[name] = (time.monotonic(), found)
        return found

    async def is_ready(self) -> bool:
        """Whether the engine would take a request now."""
        try:
            await self._probe(_READY_SECONDS)
        except MultiLoRAError as error:
            self._translated(error)
            return False
        return True

    async def _probe(self, seconds: float) -> None:
        """Let the engine stop what does not run: it answers at once, whatever else it does; raises
        MultiLoRAError. Its Triton server says "ready" of a model whose process has died."""
        answer = Reply()
        request = stop_request(ENGINE, uuid.uuid4().hex)
        try:
            async for message in self._stub.ModelStreamInfer(iter([request]), timeout=seconds):
                answer.push(message)
        except grpc.aio.AioRpcError as error:
            raise from_status(error.code(), error.details(), self.url) from None
        answer.check_complete()

    async def _describe(self) -> BaseModel:
        return BaseModel.from_json(await self.adapters("describe", _DESCRIBE_SECONDS))

    def _described(self, task: asyncio.Task[BaseModel]) -> None:
        """A failure is told to those who wait for it, and to nobody after them."""
        if (task.cancelled() or task.exception()) and self._base is task:
            self._base = None

    async def _follow_connection(self) -> None:
        """A server that goes may come back as another before anybody asks for anything."""
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

    def _translated(self, error: MultiLoRAError) -> GatewayError:
        known = gateway_error(error)
        if known.kind == "unavailable":
            self._forget()  # it may come back with another model
        return known
