"""Administration of adapters as KServe messages: the request to send, what the answer says.

Laws: no network here; an input travels only when the caller gave it; fields of a newer server's
answer that this client does not know are left out, never an error.
"""

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import grpc
from tritonclient.grpc import service_pb2

from multilora_api.admin import KEYS
from multilora_api.tensors import ADMIN_OUTPUT
from multilora_client.errors import MultiLoRAError, TimedOut, from_message, from_status, invalid
from multilora_client.protocol import new_request
from multilora_client.tensors import Scalar, add_input, outputs

GRACE_SECONDS = 2.0  # the client gives up so much later than the server, to hear its reason


class _Record:
    """A dataclass that is read from a JSON object."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Raises MultiLoRAError when something is missing."""
        known = {field.name for field in fields(cls)}  # pyright: ignore[reportArgumentType]
        try:
            return cls(**{name: _frozen(value) for name, value in values.items() if name in known})
        except (TypeError, AttributeError) as error:
            raise _unreadable(error) from None


@dataclass(frozen=True)
class AdapterInfo(_Record):
    """One adapter on the server. Facts from its files are None until these were read once."""

    id: str
    source: str  # a folder, a Hub id or a URL
    revision: str
    origin: str  # "registered", "directory", "on demand" or "merged"
    digest: str | None  # of its files: the same content, the same digest
    rank: int | None
    modules: tuple[str, ...] | None  # of the base model that it changes
    bytes: int | None  # in host memory
    pages: int | None  # in the device pool
    tier: str  # where it is now: "device", "host" or "disk"
    pinned: bool
    running: int  # requests
    waiting: int
    requests: int  # since the server started
    tokens: int  # generated in that time
    last_used: float | None  # Unix time in seconds
    state: str  # "ready", "loading", "failed" or "unloading"
    error: str | None
    error_code: str | None = None  # "INVALID_ARG", "NOT_FOUND", "UNAVAILABLE", …


@dataclass(frozen=True)
class AdapterMemory(_Record):
    """What all adapters together occupy."""

    device_pages_used: int
    device_pages: int
    page_bytes: int
    host_bytes_used: int
    host_bytes: int


@dataclass(frozen=True)
class Unloaded(_Record):
    """What unloading an adapter gave back: pages of the device pool, bytes of host memory."""

    id: str
    freed_pages: int
    freed_bytes: int


def admin_request(
    model: str, action: str, inputs: dict[str, Scalar | None]
) -> service_pb2.ModelInferRequest:
    """The request for one action; raises InvalidRequest naming an input that does not fit."""
    request = new_request(model)
    add_input(request, "action", "BYTES", action)
    for name, value in inputs.items():
        if name not in KEYS:
            raise invalid(f"unknown input {name}; there are action, {', '.join(KEYS)}")
        if value is not None and value != "" and value is not False:
            add_input(request, name, KEYS[name].datatype, value)
    return request


def merge_text(
    parts: Mapping[str, float], strategy: str, density: float | None, sign_method: str
) -> str:
    """The input `merge`: adapters with their weights, and how they become one."""
    given = {
        "ids": list(parts),
        "weights": [float(weight) for weight in parts.values()],
        "merge_strategy": strategy or None,
        "density": density,
        "majority_sign_method": sign_method or None,
    }
    return json.dumps({name: value for name, value in given.items() if value is not None})


class AdminReply:
    """The responses to one action: one of them holds the answer."""

    def __init__(self) -> None:
        self._result: str | None = None

    def push(self, message: service_pb2.ModelStreamInferResponse) -> None:
        if message.error_message:
            raise from_message(message.error_message)
        for value in outputs(message.infer_response).get(ADMIN_OUTPUT.name, []):
            self._result = str(value)

    def answer(self) -> dict[str, Any]:
        """The JSON object; to be called at the end of the stream."""
        try:
            values = json.loads(self._result or "")
        except ValueError as error:
            raise _unreadable(error) from None
        if not isinstance(values, dict):
            raise _unreadable(TypeError(f"a JSON object was expected, got {type(values).__name__}"))
        return values


def adapter_infos(values: dict[str, Any]) -> list[AdapterInfo]:
    """The entries in the answer to `list`."""
    return [AdapterInfo.from_json(entry) for entry in _member(values, "adapters")]


def adapter_memory(values: dict[str, Any]) -> AdapterMemory:
    """The memory in the answer to `list`."""
    return AdapterMemory.from_json(_member(values, "memory"))


def failure(code: grpc.StatusCode, details: str | None, url: str) -> MultiLoRAError:
    """The exception for the status that ended the stream of an action."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = "the answer did not arrive in time; what the server has begun goes on meanwhile"
        return TimedOut(code.name, f"{message}, ask again or allow a longer timeout")
    return from_status(code, details, url)


def deadline(seconds: float | None) -> float | None:
    """When the client gives up on an action for which the server has `seconds`."""
    return None if seconds is None else seconds + GRACE_SECONDS


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _member(values: dict[str, Any], name: str) -> Any:
    try:
        return values[name]
    except KeyError as error:
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> MultiLoRAError:
    return MultiLoRAError(
        "INTERNAL",
        "this client cannot read the server's answer; use the client of the server's version "
        f"({type(error).__name__}: {error})",
    )
