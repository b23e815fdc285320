"""Requests begin in turns, between which the event loop does everything else."""

import asyncio
from collections import deque

from starlette.types import ASGIApp, Receive, Scope, Send


class Turns:
    """ASGI middleware: of requests that arrive together, one begins in each turn of the event loop,
    in their order.

    To begin a request, or to refuse it, takes a millisecond: were a thousand begun in one turn,
    every stream would stand still for a second.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False  # this turn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._turn()
        await self._app(scope, receive, send)

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._next)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its request was cancelled
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._taken = False
