"""What the gateway and the engine say to each other: generation requests, deltas and errors."""

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from multilora_api.tensors import (
    ENGINE_MODEL,
    NOT_OPEN,
    PROMPT_LOGPROBS,
    REQUEST_ID,
    RUNNING,
    SHARED_STREAM,
)
from multilora_client.errors import MultiLoRAError, ProcessDied, ServerLost
from multilora_client.protocol import new_request
from multilora_client.tensors import Scalar, add_input
from multilora_gateway.errors import (
    GatewayError,
    failed,
    invalid,
    not_found,
    overloaded,
    unavailable,
)

_NOT_SERVED = "Request for unknown model"  # the Triton server's words
_TOO_MANY = "--max-concurrent-requests"  # the engine says so when too many requests wait


@dataclass(frozen=True)
class GenerationRequest:
    """One sequence to generate. `adapter_id` "" is the base model.

    `sampling` holds values by the engine's names of `sampling_parameters`. `adapter_token` opens
    private Hub repositories.
    """

    prompt_ids: Sequence[int]
    adapter_id: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    adapter_token: str = field(default="", repr=False)

    @property
    def logprobs(self) -> int | None:
        """How many likeliest tokens to report beside each; None: no log probabilities at all."""
        return self.sampling.get("logprobs")


# Of a place in a text: {token id: {logprob, rank, decoded_token}}, of the likeliest tokens and the
# one that stands there; None of the first place of a prompt.
Entries = dict[str, dict[str, Any]] | None


@dataclass(frozen=True)
class Token:
    """`logprob` is None unless the request asks for logprobs. `top` holds (token id, logprob) of
    the likeliest tokens in this place, the most likely one first."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """What one response of the engine adds. `text` is cut at stop strings, `tokens` are not.

    Only the last delta has a `finish_reason`, "stop" or "length". `queue_seconds` is how long the
    request waited in the engine; None as long as the engine has not said so. Of the tokens of a
    prompt whose log probabilities the request asks for, `prompt` of the first delta tells.
    """

    text: str
    tokens: tuple[Token, ...]
    finish_reason: str | None = None
    queue_seconds: float | None = None
    prompt: tuple[Entries, ...] = ()


def engine_request(
    asked: GenerationRequest, shared_stream: str = ""
) -> service_pb2.ModelInferRequest:
    """The gRPC message of a generation request, with a new request id. Its answer comes through the
    shared stream of that name, "" through its own."""
    message = new_request(ENGINE_MODEL, uuid.uuid4().hex)
    add_input(message, "input_ids", "INT32", list(asked.prompt_ids))
    if asked.adapter_id:
        add_input(message, "adapter_id", "BYTES", asked.adapter_id)
    if asked.adapter_token:
        add_input(message, "adapter_token", "BYTES", asked.adapter_token)
    add_input(message, "sampling_parameters", "BYTES", json.dumps(dict(asked.sampling)))
    if shared_stream:
        add_input(message, SHARED_STREAM.name, "BYTES", shared_stream)
    reports = ["stream", "return_finish_reason", "return_queue_time"]
    if asked.logprobs is not None:
        reports.append("return_logprobs")
    for name in reports:
        add_input(message, name, "BOOL", True)
    return message


def columns(values: Mapping[str, Sequence[Scalar]]) -> Iterator[tuple[str, int, list[int]]]:
    """(request id, number of the column, its token ids), from the outputs of a shared response."""
    start = 0
    for column, request_id in enumerate(values.get(REQUEST_ID.name, ())):
        end = start + int(values["num_output_tokens"][column])
        yield str(request_id), column, [int(value) for value in values["output_ids"][start:end]]
        start = end


def delta_of(
    values: Mapping[str, Sequence[Scalar]], column: int, ids: list[int], logprobs: int | None
) -> Delta:
    """What a column adds, which has these token ids. `logprobs` is how many of the likeliest tokens
    its request asks for."""
    reason = str(values["finish_reason"][column])
    waited = values.get("queue_time")
    tokens = tuple(map(Token, ids))
    if logprobs is not None:
        entries = json.loads(str(values["logprobs"][column]))
        tokens = tuple(token_of(*each, logprobs) for each in zip(ids, entries, strict=True))
    prompt = values.get(PROMPT_LOGPROBS.name)
    return Delta(
        str(values["text_output"][column]),
        tokens,
        None if reason == RUNNING else reason,
        float(waited[column]) if waited else None,
        tuple(json.loads(str(prompt[column]))) if prompt else (),
    )


def token_of(token_id: int, entries: Entries, count: int) -> Token:
    """With the `count` likeliest tokens of its place."""
    if entries is None:
        return Token(token_id)
    ranked = sorted(
        (entry["rank"], int(name), entry["logprob"])
        for name, entry in entries.items()
        if entry["rank"] <= count
    )
    top = tuple((name, logprob) for _, name, logprob in ranked)
    return Token(token_id, entries[str(token_id)]["logprob"], top)


def is_not_open(error: MultiLoRAError) -> bool:
    """Whether a request was refused because its shared stream has ended: another may be opened."""
    return NOT_OPEN in error.message


def is_lost(error: MultiLoRAError) -> bool:
    """Whether an error means that another base model may be served next: the server is gone, or the
    engine is. What a living engine says of an adapter does not count."""
    gone = isinstance(error, ServerLost | ProcessDied)
    return gone or error.message.startswith(_NOT_SERVED)


def gateway_error(error: MultiLoRAError, model: str) -> GatewayError:
    """The gateway's error for an error that the client library raised when `model` was asked."""
    code, message = error.code, error.message
    if code == grpc.StatusCode.INVALID_ARGUMENT.name:
        return invalid(message)
    if message.startswith(_NOT_SERVED):  # the server starts, or ends
        return unavailable(
            f"the Triton server does not serve {model} now ({message}); try again later"
        )
    if code == grpc.StatusCode.NOT_FOUND.name:
        return not_found(message)
    if code == grpc.StatusCode.UNAVAILABLE.name:
        return overloaded() if _TOO_MANY in message else unavailable(message)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED.name:
        return GatewayError(504, "timeout", message)
    return failed(message)
