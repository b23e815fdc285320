"""Reads request bodies before anything else does: of bounded size, within bounded time."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multilora_gateway.error_answers import error_answer
from multilora_gateway.errors import GatewayError

BODY_SECONDS = 30.0


class BodyLimit:
    """ASGI middleware: 413 for more than `most` bytes, 408 for a body that dribbles in."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            self._check(_content_length(scope))
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._read(receive)
        except GatewayError as error:
            return await error_answer(scope["path"], error)(scope, receive, send)
        except TimeoutError:
            late = GatewayError(408, "timeout", f"the body did not arrive in {BODY_SECONDS:.0f} s")
            return await error_answer(scope["path"], late)(scope, receive, send)
        if body is None:  # it left in the middle of it
            return
        message: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Message:
            nonlocal message
            first, message = message, None
            return first or await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._check(size)
            if not message.get("more_body"):
                return b"".join(parts)

    def _check(self, size: int) -> None:
        if size > self._most:
            raise GatewayError(
                413, "too_large",
                f"the body has more than {self._most} bytes; shorten it, or start the server with "
                "a larger --payload-limit",
                headers={"Connection": "close"},
            )  # fmt: skip


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
