"""Streams are left, not cancelled: the engine is told, and what it still says is read."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from multilora_client.errors import Unavailable
from multilora_gateway.backend import stream as engine_stream
from multilora_gateway.backend.stream import EngineStream


class Call:
    """grpc.aio's side: says numbers until it is told to stop, for the `deaf` + 1st time."""

    def __init__(self, deaf: int = 0, last: int = 1 << 60) -> None:
        self.stops = -deaf
        self.asked = 0
        self.said = 0
        self.cancelled = False
        self._last = last

    async def __aiter__(self) -> AsyncIterator[int]:
        while self.stops < 1 and self.said < self._last:
            await asyncio.sleep(0)
            if self.cancelled:
                raise asyncio.CancelledError
            self.said += 1
            yield self.said

    def cancel(self) -> None:
        self.cancelled = True

    async def stop(self) -> None:
        self.asked += 1
        self.stops += 1


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def test_it_is_read_in_order_to_its_end() -> None:
    async def test() -> None:
        call = Call(last=5)
        stream = EngineStream(call, call.stop)
        assert [message async for message in stream] == [1, 2, 3, 4, 5]
        assert stream.at_end and not call.asked

    run(test)


@pytest.mark.parametrize("deaf", [0, 2])
def test_leaving_stops_it_and_reads_the_rest(deaf: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the engine hears of the stop before it hears of the request."""
    monkeypatch.setattr(engine_stream, "_STOP_SECONDS", 0.05)

    async def test() -> None:
        call = Call(deaf)
        stream = EngineStream(call, call.stop)
        assert await anext(stream) == 1 and not stream.at_end
        await stream.leave(ended=False)
        assert call.asked == 1 + deaf and stream._reader.done()

    run(test)


def test_who_waits_may_be_cancelled_without_the_stream() -> None:
    async def test() -> None:
        call = Call()
        stream = EngineStream(call, call.stop)
        reader = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert not call.cancelled
        await stream.leave(ended=False)
        assert call.asked == 1

    run(test)


def test_what_has_ended_is_not_stopped() -> None:
    async def test() -> None:
        call = Call(last=3)
        stream = EngineStream(call, call.stop)
        assert await anext(stream) == 1
        await stream.leave(ended=True)
        assert call.said == 3 and not call.asked

    run(test)


def test_a_server_that_is_gone_is_not_waited_for() -> None:
    async def test() -> None:
        asked: list[int] = []

        async def nobody() -> None:
            asked.append(1)
            raise Unavailable("UNAVAILABLE", "gone")

        call = Call()
        stream = EngineStream(call, nobody)
        assert await anext(stream) == 1
        await stream.leave(ended=False)
        assert call.cancelled and stream._reader.done() and len(asked) == 1

    run(test)


def test_the_watch_ends_who_waits() -> None:
    async def test() -> None:
        call = Call()
        stream = EngineStream(call, call.stop)
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            while True:
                await anext(stream)

    run(test)
