"""The Triton server behind the gateway: generations as gRPC streams, and the adapters model.

Laws: one gRPC stream a generation, so that closing one cancels that request and no other; what the
server is and holds is asked for when it is needed and forgotten when the server goes away.
"""

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from multilora_client.adapters_aio import AsyncAdapters
from multilora_client.connection import Endpoint
from multilora_client.errors import MultiLoRAError, from_message, from_status
from multilora_client.tensors import Scalar, add_input, outputs
from multilora_gateway.base_model import BaseModel
from multilora_gateway.errors import (
    GatewayError,
    failed,
    invalid,
    not_found,
    overloaded,
    unavailable,
)
from multilora_gateway.generation import Answer, Call, Piece, Token
from multilora_text.chat_template import ChatTemplate

ENGINE = "multilora_llm"
ADAPTERS = "adapters"
_RUNNING = "None"  # finish_reason of a response that is not the last
_TEMPLATE_SECONDS = 1.0  # how long a template is believed: files that change count within seconds
_MOST_TEMPLATES = 1024
_READY_SECONDS = 2.0
_DESCRIBE_SECONDS = 30.0
_TOO_MANY = "--max-concurrent-requests"  # in the engine's words for a full house


class Backend:
    """Make it inside the running event loop. Every method raises GatewayError."""

    def __init__(self, url: str) -> None:
        endpoint = Endpoint.parse(url)
        self.url = endpoint.address
        self._channel = endpoint.aio_channel()
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._adapters = AsyncAdapters(self._stub, ADAPTERS, self.url, None)
        self._base: BaseModel | None = None
        self._templates: dict[str, tuple[float, ChatTemplate | None]] = {}

    async def close(self) -> None:
        await self._channel.close()

    async def generate(self, call: Call) -> AsyncGenerator[Piece, None]:
        """The answer in pieces; closing the generator cancels the request at once."""
        stream = self._stub.ModelStreamInfer(iter([_request(call)]))
        wanted = call.sampling.get("logprobs") is not None
        complete = False
        try:
            async for message in stream:
                piece = _piece(message, wanted)
                complete = complete or piece.finish_reason is not None
                yield piece
            if not complete:
                raise GatewayError(500, "incomplete_generation", "Incomplete generation")
        except grpc.aio.AioRpcError as error:
            raise self._lost(error) from None
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
        try:
            return await self._adapters.ask(action, timeout, **inputs)
        except MultiLoRAError as error:
            raise self._translated(error) from None

    async def base(self) -> BaseModel:
        """The base model that is being served."""
        if self._base is None:
            self._base = BaseModel.from_json(await self.adapters("describe", _DESCRIBE_SECONDS))
        return self._base

    async def template(self, adapter_id: str, token: str = "") -> ChatTemplate | None:
        """An adapter's own chat template; None: it uses the base model's.

        `token` opens a private Hub repository that has to be downloaded first.
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

    async def is_ready(self) -> bool:
        """Whether the server would take a request now."""
        request = service_pb2.ModelReadyRequest(name=ENGINE)
        try:
            return bool((await self._stub.ModelReady(request, timeout=_READY_SECONDS)).ready)
        except grpc.aio.AioRpcError:
            self._base = None  # it may come back with another model
            return False

    def _lost(self, error: grpc.aio.AioRpcError) -> GatewayError:
        return self._translated(from_status(error.code(), error.details(), self.url))

    def _translated(self, error: MultiLoRAError) -> GatewayError:
        if error.code == grpc.StatusCode.UNAVAILABLE.name and _TOO_MANY not in error.message:
            self._base = None  # it may come back with another model
        return _gateway_error(error)


def _request(call: Call) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=ENGINE, id=uuid.uuid4().hex)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    add_input(request, "input_ids", "INT32", list(call.prompt_ids))
    if call.adapter_id:
        add_input(request, "adapter_id", "BYTES", call.adapter_id)
    if call.adapter_timeout is not None:
        add_input(request, "adapter_timeout", "FP32", call.adapter_timeout)
    if call.adapter_token:
        add_input(request, "adapter_token", "BYTES", call.adapter_token)
    add_input(request, "sampling_parameters", "BYTES", json.dumps(dict(call.sampling)))
    reports = ["stream", "return_finish_reason", "return_queue_time"]
    if call.sampling.get("logprobs") is not None:
        reports.append("return_logprobs")
    for name in reports:
        add_input(request, name, "BOOL", True)
    return request


def _piece(message: service_pb2.ModelStreamInferResponse, logprobs: bool) -> Piece:
    if message.error_message:
        raise _gateway_error(from_message(message.error_message))
    values = outputs(message.infer_response)
    if not values:
        return Piece("", ())
    ids = [int(value) for value in values["output_ids"]]
    reason = str(values["finish_reason"][0])
    waited = values.get("queue_time")
    tokens = tuple(map(Token, ids))
    if logprobs:
        tokens = tuple(map(_token, ids, json.loads(str(values["logprobs"][0]))))
    return Piece(
        str(values["text_output"][0]),
        tokens,
        None if reason == _RUNNING else reason,
        float(waited[0]) if waited else None,
    )


def _token(token_id: int, entries: dict[str, dict[str, Any]]) -> Token:
    """From {token id: {logprob, rank}}; the rank is null beyond the most likely ones."""
    ranked = sorted(
        (entry["rank"], int(name), entry["logprob"])
        for name, entry in entries.items()
        if entry["rank"] is not None
    )
    top = tuple((name, logprob) for _, name, logprob in ranked)
    return Token(token_id, entries[str(token_id)]["logprob"], top)


def _gateway_error(error: MultiLoRAError) -> GatewayError:
    code, message = error.code, error.message
    if code == grpc.StatusCode.INVALID_ARGUMENT.name:
        return invalid(message)
    if message.startswith("Request for unknown model"):  # the server starts, or ends
        return unavailable(f"the Triton server does not serve {ENGINE} now ({message})")
    if code == grpc.StatusCode.NOT_FOUND.name:
        return not_found(message)
    if code == grpc.StatusCode.UNAVAILABLE.name:
        return overloaded() if _TOO_MANY in message else unavailable(message)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED.name:
        return GatewayError(504, "timeout", message)
    return failed(message)
