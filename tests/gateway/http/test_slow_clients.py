"""Clients that send too slowly, read too slowly or leave: nothing of theirs stays behind."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import Request

from multilora_gateway.http import body_limit, streaming
from multilora_gateway.http.body_limit import BodyLimit
from multilora_gateway.http.connections import ConnectionLimits
from multilora_gateway.http.streaming import ClientGone, EventStream, until_disconnected
from support.gateway.serving import GET, serving, wait_for

SCOPE: dict[str, Any] = {"type": "http", "path": "/generate", "method": "POST", "headers": []}
SECONDS = 10


class Events:
    """A stream that says when it was closed."""

    def __init__(self, pause: float, text: bytes = b"") -> None:
        self.pause = pause
        self.text = text
        self.closed = False

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        try:
            for number in range(1000):
                yield b"data:%d%s\n\n" % (number, self.text)
                await asyncio.sleep(self.pause)
        finally:
            self.closed = True


async def never() -> Any:
    await asyncio.Event().wait()


async def app_that_must_not_run(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("the body was not whole")


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, SECONDS))


def test_a_body_that_dribbles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "BODY_SECONDS", 0.1)
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0.03)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    run(BodyLimit(app_that_must_not_run, 1000)(SCOPE, receive, send))
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]  # and not kept for the rest
    assert b'"error_type":"timeout"' in sent[1]["body"]


def test_a_client_that_leaves_within_its_body_is_forgotten() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there to be answered")

    run(BodyLimit(app_that_must_not_run, 1000)(SCOPE, receive, send))


def test_a_client_that_does_not_read_is_given_up() -> None:
    events = Events(0, b"x" * 100_000)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await EventStream(events())(scope, receive, send)

    with serving(app, ConnectionLimits(write_seconds=0.2)) as served, served.connect() as client:
        client.sendall(GET)
        wait_for(lambda: events.closed)
        wait_for(lambda: not served.connections)


def test_a_client_that_leaves_a_stream_ends_it() -> None:
    events = Events(60)  # between two events nothing is sent that could fail

    async def receive() -> Any:
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    run(EventStream(events())(SCOPE, receive, send))
    assert events.closed


def test_a_silent_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.05)
    monkeypatch.setattr(streaming, "_WATCH_SECONDS", 0.02)
    events = Events(60)
    alive = asyncio.Event()

    async def receive() -> Any:
        await alive.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body", b"").startswith(b":"):
            alive.set()

    run(EventStream(events())(SCOPE, receive, send))


def test_an_answer_nobody_waits_for_is_cancelled() -> None:
    cancelled = False

    async def answer() -> None:
        nonlocal cancelled
        try:
            await never()
        except asyncio.CancelledError:
            cancelled = True
            raise

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        run(until_disconnected(Request(SCOPE, receive), answer()))
    assert cancelled
