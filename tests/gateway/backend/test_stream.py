"""Streams are left, not cancelled: the engine is told, and what it still says is read."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from multilora_client.errors import InvalidRequest, Unavailable
from multilora_gateway.backend import stream as engine_stream
from multilora_gateway.backend.messages import Delta
from multilora_gateway.backend.stream import EngineStream


class Call:
    """grpc.aio's side: lasts until `done`, or until it is told to stop, for the `deaf` + 1st
    time."""

    def __init__(self, deaf: int = 0, error: str = "") -> None:
        self.stops = -deaf
        self.asked = 0
        self.done = self.cancelled = self.read_to_its_end = False
        self._error = error

    async def __aiter__(self) -> AsyncIterator[Any]:
        while self.stops < 1 and not self.done:
            await asyncio.sleep(0)
            if self.cancelled:
                raise asyncio.CancelledError
        yield SimpleNamespace(error_message=self._error)
        await asyncio.sleep(0.01)
        self.read_to_its_end = True

    def cancel(self) -> None:
        self.cancelled = True

    async def stop(self) -> None:
        self.asked += 1
        self.stops += 1


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


@pytest.mark.parametrize("first", ["call", "deltas"])
def test_it_ends_with_its_last_delta_and_its_call(first: str) -> None:
    """In whatever order they come to their ends."""

    async def test() -> None:
        call = Call()
        stream = EngineStream(call, call.stop)
        call.done = first == "call"
        await asyncio.sleep(0.01)
        said = [Delta(text, ()) for text in "ab"] + [Delta("c", (), "stop")]
        for delta in said:
            stream.push(delta)
        call.done = True
        assert [delta async for delta in stream] == said
        assert stream.at_end and not call.asked

    run(test)


def test_an_error_of_the_call_ends_it() -> None:
    async def test() -> None:
        call = Call(error="no luck [INVALID_ARG]")
        stream = EngineStream(call, call.stop)
        stream.push(Delta("a", ()))
        assert (await anext(stream)).text == "a"
        call.done = True
        with pytest.raises(InvalidRequest, match="no luck"):
            await anext(stream)
        await stream.leave()
        assert call.read_to_its_end and not call.asked

    run(test)


def test_a_broken_shared_stream_ends_it() -> None:
    async def test() -> None:
        call = Call()
        stream = EngineStream(call, call.stop)
        stream.fail(Unavailable("UNAVAILABLE", "gone"))
        with pytest.raises(Unavailable, match="gone"):
            await anext(stream)
        assert not stream.at_end
        await stream.leave()
        assert call.asked == 1

    run(test)


def test_a_shared_stream_that_ends_in_order_leaves_it_to_its_call() -> None:
    """Which tells why, if there was something to tell."""

    async def test() -> None:
        call = Call(error="not open [UNAVAILABLE]")
        stream = EngineStream(call, call.stop)
        stream.end()
        call.done = True
        with pytest.raises(Unavailable, match="not open"):
            await anext(stream)

    run(test)


@pytest.mark.parametrize("deaf", [0, 2])
def test_leaving_stops_it_and_reads_the_rest(deaf: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the engine hears of the stop before it hears of the request."""
    monkeypatch.setattr(engine_stream, "_STOP_SECONDS", 0.05)

    async def test() -> None:
        call = Call(deaf)
        stream = EngineStream(call, call.stop)
        stream.push(Delta("a", ()))
        assert (await anext(stream)).text == "a" and not stream.at_end
        await stream.leave()
        stream.push(Delta("late", ()))
        assert call.asked == 1 + deaf and stream._reader.done()

    run(test)


def test_who_waits_may_be_cancelled_without_the_stream() -> None:
    async def test() -> None:
        call = Call()
        stream = EngineStream(call, call.stop)
        reader = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert not call.cancelled
        await stream.leave()
        assert call.asked == 1

    run(test)


def test_what_has_ended_is_not_stopped() -> None:
    async def test() -> None:
        call = Call()
        stream = EngineStream(call, call.stop)
        stream.push(Delta("a", (), "stop"))
        assert (await anext(stream)).text == "a"
        call.done = True
        await stream.leave()
        assert not call.asked

    run(test)


def test_a_server_that_is_gone_is_not_waited_for() -> None:
    async def test() -> None:
        asked: list[int] = []

        async def nobody() -> None:
            asked.append(1)
            raise Unavailable("UNAVAILABLE", "gone")

        call = Call()
        stream = EngineStream(call, nobody)
        await stream.leave()
        assert call.cancelled and stream._reader.done() and len(asked) == 1

    run(test)


def test_the_watch_ends_who_waits() -> None:
    async def test() -> None:
        call = Call()
        stream = EngineStream(call, call.stop)
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(2):
                await anext(stream)

    run(test)
