"""What can go wrong with a request, as exceptions whose message says what to do.

`code` is the gRPC status name (INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE, CANCELLED,
DEADLINE_EXCEEDED, ...); the subclasses name the codes a caller handles differently.
"""

import re

import grpc


class MultiLoRAError(Exception):
    """A request failed. `str(error)` is the message alone."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class InvalidRequest(MultiLoRAError):
    """The request can never work as it stands: a parameter, the prompt or the adapter."""


class NotFound(MultiLoRAError):
    """The adapter, or the Triton model, is not there."""


class Unavailable(MultiLoRAError):
    """No server answers, or it is too busy; try again later."""


class ServerLost(Unavailable):
    """The Triton server did not take the request or broke it off: it is not there, or it stops."""


class ProcessDied(Unavailable):
    """The Triton server lives, but the process of one of its models has died."""


class Cancelled(MultiLoRAError):
    """The request was cancelled."""


class TimedOut(MultiLoRAError):
    """The answer did not arrive within `timeout` seconds."""


_TYPES: dict[grpc.StatusCode, type[MultiLoRAError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAVAILABLE: Unavailable,  # when a model says so; of gRPC itself ServerLost
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
}
# The error message of a stream holds the ensemble's name, the message, the engine's code.
_FAILURE = re.compile(r"(?:in ensemble '[^']*', )?(.*?)(?: \[([A-Z_]+)\])?", re.DOTALL)
_DEAD = ("Stub process is not healthy", "Stub process '")  # Triton's words for a model's process
# How gRPC words a connection that was never made, as opposed to a server that is too busy.
_NO_CONNECTION = ("failed to connect", "DNS resolution failed", "connection refused", "http1.x")


def invalid(message: str) -> InvalidRequest:
    """An InvalidRequest found before anything was sent."""
    return InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT.name, message)


def from_status(code: grpc.StatusCode, details: str | None, url: str) -> MultiLoRAError:
    """The exception for a gRPC status that ended a request to `url`."""
    message = (details or "").strip() or f"the server ended the request with {code.name}"
    if code is grpc.StatusCode.UNAVAILABLE and _mentions(message, _NO_CONNECTION):
        message = (
            f"no Triton server answers on gRPC at {url}; start one, or give the address of its "
            f"gRPC port, 8001 by default ({message})"
        )
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = "the answer did not arrive in time; allow a longer timeout or fewer tokens"
    kind = ServerLost if code is grpc.StatusCode.UNAVAILABLE else _TYPES.get(code, MultiLoRAError)
    return kind(code.name, message)


def from_message(text: str) -> MultiLoRAError:
    """The exception for the error message of a stream.

    A Triton server can send a gRPC status instead, when the header triton_grpc_error asks for one,
    but version 2.51 then crashes on errors that coincide.
    """
    match = _FAILURE.fullmatch(text)
    assert match, "the expression matches any text"
    message, code = match[1], match[2] or "UNKNOWN"
    if code == "INVALID_ARG":
        code = grpc.StatusCode.INVALID_ARGUMENT.name
    elif message.startswith("Request for unknown model"):
        code = grpc.StatusCode.NOT_FOUND.name
    elif message.startswith(_DEAD):
        return ProcessDied(
            grpc.StatusCode.UNAVAILABLE.name,
            f"the process of a Triton model has died; restart the Triton server ({message})",
        )
    kinds = {status.name: kind for status, kind in _TYPES.items()}
    return kinds.get(code, MultiLoRAError)(code, message)


def _mentions(message: str, phrases: tuple[str, ...]) -> bool:
    return any(phrase.lower() in message.lower() for phrase in phrases)
