"""Server-sent events, and answers that end when their client goes.

Laws: a client that goes away is noticed at once, also before the first token, and then its request
ends. The protocol (protocol.py) gives up a client that does not read.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

KEEP_ALIVE_SECONDS = 15.0
_WATCH_SECONDS = 5.0
_KEEP_ALIVE = b":\n\n"
_T = TypeVar("_T")


class ClientGone(Exception):
    """The client went away before its answer began."""


class EventStream(Response):
    """Sends every chunk of `events` as it comes, and closes `events` at the end in any case."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})}
        )
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = _Writer(send)
        serve = asyncio.create_task(self._serve(send, writer))
        others = (
            asyncio.create_task(_disconnected(receive)),
            asyncio.create_task(writer.keep_alive()),
        )
        try:
            await asyncio.wait((serve, *others), return_when=asyncio.FIRST_COMPLETED)
            if serve.done():
                serve.result()
        finally:
            for task in (serve, *others):
                task.cancel()
            await asyncio.gather(serve, *others, return_exceptions=True)
            await self._events.aclose()

    async def _serve(self, send: Send, writer: "_Writer") -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for chunk in self._events:
            await writer.write(chunk)
        await send({"type": "http.response.body", "body": b""})


class _Writer:
    """Writes events. A task beside the writing watches the time: a timer for each event would cost
    more than the event."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._writing = False
        self._since = time.monotonic()  # when the last event began

    async def write(self, chunk: bytes) -> None:
        self._writing = True
        self._since = time.monotonic()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._writing = False

    async def keep_alive(self) -> None:
        """Writes what says nothing whenever nothing was written for long; never returns."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if not self._writing and time.monotonic() - self._since > KEEP_ALIVE_SECONDS:
                await self.write(_KEEP_ALIVE)


async def until_disconnected(request: Request, answer: Awaitable[_T]) -> _T:
    """The answer. When the client goes first, cancels the answer and raises ClientGone."""
    task = asyncio.ensure_future(answer)
    gone = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
