"""Errors that reach a user: a code of the Triton server's vocabulary, and what to do."""

from enum import Enum

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class ErrorCode(Enum):
    """How a failed request is reported. Names equal those of `TritonError`."""

    INVALID_ARG = "INVALID_ARG"  # the request can never work as it stands
    NOT_FOUND = "NOT_FOUND"  # the adapter is not known
    UNAVAILABLE = "UNAVAILABLE"  # try again later
    CANCELLED = "CANCELLED"  # the client went away or sent stop=true
    INTERNAL = "INTERNAL"  # a defect on our side


class RequestError(Exception):
    """One request cannot be served; every other request goes on.

    The message names the field at fault and says what to do.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def tagged(self) -> str:
        """The message with its code behind it: a gRPC stream carries the text of an error alone."""
        text = f"{self.message} [{self.code.value}]"
        return text.encode("utf-8", "surrogateescape").decode(
            "utf-8", "replace"
        )  # it may name paths


def invalid(message: str) -> RequestError:
    """A RequestError with code INVALID_ARG."""
    return RequestError(ErrorCode.INVALID_ARG, message)


def grammar_failed(error: str) -> RequestError:
    """What a request gets whose matcher gave up half way."""
    return invalid(f"grammar: the matcher gave up ({error}); simplify the schema or expression")


def too_many(what: str) -> RequestError:
    """The house is full; `what` says of what."""
    message = f"{what}, the most that --max-concurrent-requests allows; try again later"
    return RequestError(ErrorCode.UNAVAILABLE, message)


def cancelled() -> RequestError:
    """What those get who have said that they want no answer."""
    return RequestError(ErrorCode.CANCELLED, "request was cancelled")


def shutting_down() -> RequestError:
    """What those get whom the server leaves without an answer."""
    return RequestError(ErrorCode.UNAVAILABLE, "the server is shutting down; try again later")


def internal(message: str) -> RequestError:
    """A defect on our side, of which the log has the traceback."""
    return RequestError(ErrorCode.INTERNAL, f"{message}; the server's log says more")


def lfs_problem(content: bytes) -> str:
    """What to do about a file that begins with `content`, when it is a Git LFS pointer; else ""."""
    if not content.startswith(_LFS_POINTER):
        return ""
    return (
        "is a Git LFS pointer, not the file that it stands for; run git lfs pull in its folder, or "
        "download the file again"
    )


class StartupError(Exception):
    """The server cannot start as configured; the message is one line with the remedy."""


def first_line(error: Exception) -> str:
    """What a library's error says, in one line: its first, with the next where that one ends in a
    colon. A KeyError says no more than the key."""
    if isinstance(error, KeyError):
        return f"there is no {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return said or type(error).__name__
