"""Errors of requests, with their HTTP status and the error objects of the three APIs."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

RETRY_SECONDS = 2  # how soon a client may try again when the Triton server is away or busy
_OPENAI_TYPES = {
    "unauthorized": "authentication_error",
    "forbidden": "permission_error",
    "overloaded": "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_GUESS = re.compile(r"; did you mean (.*)\?(?=;)", re.DOTALL)  # the names up to the last "?"


class GatewayError(Exception):
    """A request that cannot be served; the message says what to do. `kind` is TGI's error_type;
    `code` and `param` are OpenAI's.

    `similar` holds adapter names that may have been meant. Only callers who may use an adapter may
    read its name, so the names are not in the message yet (see `guessing`).
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        similar: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.similar = tuple(similar)

    def guessing(self, names: Sequence[str]) -> "GatewayError":
        """The same error, with `names` as guesses in its message."""
        if not names:
            return self
        guess = f"; did you mean {' or '.join(map(repr, names))}?"
        return GatewayError(
            self.status, self.kind, self.message + guess,
            code=self.code, param=self.param, headers=self.headers,
        )  # fmt: skip


def invalid(message: str, param: str | None = None) -> GatewayError:
    """The request can never work as it stands. TGI's "Input validation error" is added later."""
    return GatewayError(422, "validation", message, param=param)


def not_found(message: str) -> GatewayError:
    """The adapter is unknown. The server's guesses move from the message to `similar`."""
    guess = _GUESS.search(message)
    return GatewayError(
        404, "not_found", _GUESS.sub("", message), code="model_not_found", param="model",
        similar=re.findall(r"'([^']+)'", guess[1]) if guess else (),
    )  # fmt: skip


def overloaded(retry_seconds: int = RETRY_SECONDS) -> GatewayError:
    """Too many requests are running or waiting."""
    return GatewayError(429, "overloaded", "Model is overloaded", headers=_retry(retry_seconds))


def unavailable(message: str) -> GatewayError:
    """The Triton server, or the source of an adapter, is away and may be back soon."""
    return GatewayError(503, "unavailable", message, headers=_retry(RETRY_SECONDS))


def failed(message: str) -> GatewayError:
    """The engine gave up a request that it had accepted."""
    return GatewayError(424, "generation", message)


def tgi_body(error: GatewayError) -> dict[str, Any]:
    """TGI's error object."""
    prefix = {
        "validation": "Input validation error: ",
        "generation": "Request failed during generation: ",
    }.get(error.kind, "")
    return {"error": prefix + error.message, "error_type": error.kind}


def openai_body(error: GatewayError) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "invalid_request_error" if error.status < 500 else "api_error"
    return {
        "error": {
            "message": error.message,
            "type": _OPENAI_TYPES.get(error.kind, kind),
            "param": error.param,
            "code": error.code,
        }
    }


def anthropic_body(error: GatewayError) -> dict[str, Any]:
    """Anthropic's error object."""
    broken = error.status >= 500 or error.kind == "generation"
    kind = "api_error" if broken else "invalid_request_error"
    kind = _ANTHROPIC_TYPES.get(error.status, kind)
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def openai_status(error: GatewayError) -> int:
    """OpenAI, and Anthropic, answer invalid requests with 400."""
    return 400 if error.status == 422 else error.status


def _retry(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}
