"""Headers that every answer has, whoever makes it: x-request-id and x-ignored-fields."""

import re
import uuid
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multilora_gateway.http.unknown_fields import begin

REQUEST_ID, IGNORED_FIELDS = "x-request-id", "x-ignored-fields"
_SANE = re.compile(rb"[!-~]{1,128}")


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The client's own, unless it sent none, several, or what no header should hold."""
    given = [value for name, value in headers if name == b"x-request-id"]
    if len(given) == 1 and _SANE.fullmatch(given[0]):
        return given[0]
    return uuid.uuid4().hex.encode()


class AnswerHeaders:
    """ASGI middleware. `strict`: unknown fields are refused, so that none is ignored."""

    def __init__(self, app: ASGIApp, strict: bool) -> None:
        self._app = app
        self._strict = strict

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        own = request_id(scope["headers"])
        scope["request_id"] = own.decode()
        unknown = begin(self._strict)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (REQUEST_ID.encode(), own)]
                if names := unknown.header():
                    message["headers"].append((IGNORED_FIELDS.encode(), names))
            await send(message)

        await self._app(scope, receive, with_headers)
