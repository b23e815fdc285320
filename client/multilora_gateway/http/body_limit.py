"""Request bodies, read before any route runs: of bounded size, within bounded time."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multilora_gateway.errors import GatewayError
from multilora_gateway.http.error_answers import error_answer

BODY_SECONDS = 30.0
_DISCARDED = 64_000_000  # bytes beyond the limit that are still read, and dropped
_CLOSE = {"Connection": "close"}


class BodyLimit:
    """ASGI middleware: 413 for more than `most` bytes, 408 for a body that dribbles in.

    A connection that is closed with unread bytes is reset, and many clients then never see the 413.
    So excess bytes are read, too, within bounds.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            body = await self._read(scope, receive)
        except GatewayError as error:
            return await error_answer(scope["path"], error)(scope, receive, send)
        if body is None:  # the client left in the middle of the body
            return
        message: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Message:
            nonlocal message
            first, message = message, None
            return first or await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None when its client has left."""
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"")
        size = int(declared) if declared.isdigit() else 0
        if b"expect" in headers or size > self._most + _DISCARDED:
            self._check(size)  # the client waits before it sends, or would send for too long
        parts: list[bytes] = []
        seen, more = 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more and seen <= self._most + _DISCARDED:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    seen += len(part)
                    size = max(size, seen)
                    if size <= self._most:
                        parts.append(part)
                    more = bool(message.get("more_body"))
        except TimeoutError:
            self._check(size)
            late = f"the body did not arrive in {BODY_SECONDS:.0f} s; send it faster"
            # What may still come of the body nobody reads.
            raise GatewayError(408, "timeout", late, headers=_CLOSE) from None
        self._check(size)
        return b"".join(parts)

    def _check(self, size: int) -> None:
        if size > self._most:
            raise GatewayError(
                413, "too_large",
                f"the body has more than {self._most} bytes; shorten it, or start the server with "
                "a larger --payload-limit",
                headers=_CLOSE,
            )  # fmt: skip
