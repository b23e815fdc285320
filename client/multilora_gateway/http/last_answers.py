"""Answers to requests that neither a route nor an error of theirs answers."""

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multilora_gateway.errors import GatewayError, unavailable
from multilora_gateway.http.error_answers import error_answer

_LOG = logging.getLogger("multilora.gateway")


class LastAnswers:
    """ASGI middleware: 503 for a request that uvicorn cancels before its answer began, for which
    uvicorn itself would send 500 as text; 500 for one that meets a defect."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watch(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            return await self._app(scope, receive, watch)
        except asyncio.CancelledError:
            if begun or scope["type"] != "http":
                raise
            error = unavailable("the server is stopping; try again")
        except Exception as defect:
            if begun or scope["type"] != "http":
                raise
            _LOG.error("request %s failed", scope.get("request_id", ""), exc_info=defect)
            error = GatewayError(500, "internal", "internal error; the gateway's log says more")
        await error_answer(scope["path"], error)(scope, receive, send)
