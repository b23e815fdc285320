"""Calls, pieces and errors as they travel between the gateway and the engine."""

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

import json
import uuid
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from multilora_client.errors import MultiLoRAError, ProcessDied, ServerLost, from_message
from multilora_client.tensors import add_input, outputs
from multilora_gateway.errors import (
    GatewayError,
    failed,
    invalid,
    not_found,
    overloaded,
    unavailable,
)
from multilora_gateway.generation.job import Call, Piece, Token

ENGINE = "multilora_llm"
ADAPTERS = "adapters"
_RUNNING = "None"  # finish_reason of a response that is not the last
_NOT_SERVED = "Request for unknown model"  # in the Triton server's
_TOO_MANY = "--max-concurrent-requests"  # in the engine's words for a full house


def engine_request(call: Call) -> service_pb2.ModelInferRequest:
    """What is sent for a call."""
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


def piece_of(message: service_pb2.ModelStreamInferResponse, logprobs: bool) -> Piece:
    """What a response adds; raises the MultiLoRAError that it tells of."""
    if message.error_message:
        raise from_message(message.error_message)
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


def is_lost(error: MultiLoRAError, model: str) -> bool:
    """Whether what a Triton model was asked ended so that another base may be served next. What
    a living model has to say of an adapter does not; and the engine outlives the process of
    `adapters`."""
    if isinstance(error, ServerLost):
        return True
    gone = isinstance(error, ProcessDied) or error.message.startswith(_NOT_SERVED)
    return gone and model == ENGINE


def gateway_error(error: MultiLoRAError, model: str) -> GatewayError:
    """The client library's errors as the gateway's, of what a Triton model was asked."""
    code, message = error.code, error.message
    if code == grpc.StatusCode.INVALID_ARGUMENT.name:
        return invalid(message)
    if message.startswith(_NOT_SERVED):  # the server starts, or ends
        return unavailable(f"the Triton server does not serve {model} now ({message})")
    if code == grpc.StatusCode.NOT_FOUND.name:
        return not_found(message)
    if code == grpc.StatusCode.UNAVAILABLE.name:
        return overloaded() if _TOO_MANY in message else unavailable(message)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED.name:
        return GatewayError(504, "timeout", message)
    return failed(message)
