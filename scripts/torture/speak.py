"""What attacks say to a server over HTTP, and which of its answers explain themselves."""

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

_JSON = {"Content-Type": "application/json"}
_BETRAYED = ("Traceback", "nternal error", "Internal Server Error", "site-packages", "KeyError")


class Address(NamedTuple):
    host: str
    port: int

    def connect(self, seconds: float = 60.0) -> socket.socket:
        return socket.create_connection(self, seconds)


class Answer(NamedTuple):
    """`headers` by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def __str__(self) -> str:
        return f"{self.status} {self.body[:300]!r}"

    @property
    def is_refusal(self) -> bool:
        """Whether the server says that it is busy, or away for a moment."""
        return self.status in (429, 503)

    @property
    def problem(self) -> str:
        """Why the answer does not explain itself; "" when it does."""
        if any(word in self.body.decode(errors="replace") for word in _BETRAYED):
            return f"a defect shows: {self}"
        if self.is_refusal:
            return "" if "retry-after" in self.headers else f"without Retry-After: {self}"
        return f"no server may say that: {self}" if self.status >= 500 else ""


def call(
    address: Address,
    method: str,
    path: str,
    body: object = None,
    *,
    headers: Mapping[str, str] = _JSON,
    seconds: float = 60.0,
) -> Answer:
    """One request on a connection of its own. `body` travels as it is when it is bytes, else as
    JSON. Raises OSError also for what is no HTTP."""
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection = http.client.HTTPConnection(*address, timeout=seconds)
    try:
        with contextlib.suppress(BrokenPipeError):  # who is refused early can still read why
            connection.request(method, path, raw, {**_JSON, **headers})
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read())
    except http.client.HTTPException as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from None
    finally:
        connection.close()


def request_bytes(
    path: str, body: bytes = b"", method: str = "POST", headers: Mapping[str, str] = _JSON
) -> bytes:
    """A request as it travels, with its right length."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
