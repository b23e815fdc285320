"""Requests that the end of the server cuts off."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multilora_gateway.errors import unavailable
from multilora_gateway.http.error_answers import error_answer


class ShutdownAnswers:
    """ASGI middleware: 503 for a request that uvicorn cancels before its answer began, for which
    uvicorn itself would send 500 as text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watch(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except asyncio.CancelledError:
            if begun or scope["type"] != "http":
                raise
            error = unavailable("the server is stopping; try again")
            await error_answer(scope["path"], error)(scope, receive, send)
