"""The stream of one generation: what the engine says of it, read to its end also after its client
has gone.

Laws: its deltas come through a shared stream; its own gRPC call ends once they have all been sent,
or brings the error that ends it. No call is cancelled while its server lives: the Triton server
loses a request that is cancelled while the last response is being written, and cannot stop in order
afterwards. Instead the engine is told to stop the request, and the remaining responses are read.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from multilora_client.errors import MultiLoRAError, from_message
from multilora_gateway.backend.messages import Delta

_STOP_SECONDS = 0.5  # between two stops, for the first may overtake the request itself
_STOPS = 20


class EngineStream:
    """The deltas of a generation. Make an EngineStream inside the running event loop, iterate over
    it, then call `leave`. Iterating raises MultiLoRAError, AioRpcError, or what `fail` was given;
    `complete` says that the last delta has been seen.

    `call` is grpc.aio's. `stop` asks the engine to end the request, and raises MultiLoRAError when
    no engine answers.
    """

    def __init__(self, call: Any, stop: Callable[[], Awaitable[None]]) -> None:
        self._call = call
        self._stop = stop
        self._news: asyncio.Queue[Delta | Exception | None] | None = asyncio.Queue()
        self._said_all = False
        self._failed = False  # the engine says nothing after an error
        self.complete = False
        self.at_end = False  # once everything was read, there is nothing to leave
        # A task of its own reads: cancelling a task that waits for grpc.aio cancels the stream.
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(self._ended)

    def push(self, delta: Delta) -> None:
        """What came of it through the shared stream."""
        if self._news:
            self._news.put_nowait(delta)
            if delta.finish_reason is not None:
                self.end()

    def end(self) -> None:
        """Nothing more will come through the shared stream."""
        self._said_all = True
        self._ended(self._reader)

    def fail(self, error: Exception) -> None:
        """What was missing will not come: the shared stream broke."""
        if self._news:
            self._news.put_nowait(error)

    def __aiter__(self) -> "EngineStream":
        return self

    async def __anext__(self) -> Delta:
        assert self._news is not None, "the stream has been left"
        news = await self._news.get()
        if isinstance(news, Exception):
            raise news
        if news is None:
            self.at_end = True
            self._reader.result()  # raises the error that ended the call
            raise StopAsyncIteration
        self.complete = self.complete or news.finish_reason is not None
        return news

    def cancel(self) -> None:
        """For a server that is gone, which can lose nothing any more."""
        self._call.cancel()

    async def leave(self) -> None:
        """Drop the remaining news; returns at the end of the call."""
        self._news = None
        await end_call(
            self._call, self._reader, None if self.complete or self._failed else self._stop
        )

    async def _read(self) -> None:
        async for message in self._call:  # to its end: see the laws
            if message.error_message:
                self._failed = True
                self.fail(from_message(message.error_message))

    def _ended(self, reader: "asyncio.Task[None]") -> None:
        """Says so once both the call and what was said have come to their ends, or the call to an
        error."""
        if not self._news or not reader.done():
            return
        if reader.cancelled() or reader.exception() or self._said_all:
            self._news.put_nowait(None)


async def end_call(
    call: Any, reader: "asyncio.Task[Any]", stop: Callable[[], Awaitable[None]] | None
) -> None:
    """Ask the engine by `stop` to end a call, unless it does so itself. Returns at the end of
    `reader`, which reads it. A call that does not end is cancelled."""
    for _ in range(_STOPS):
        if reader.done():
            break
        try:
            if stop:
                await stop()
        except MultiLoRAError:
            break
        await asyncio.wait((reader,), timeout=_STOP_SECONDS)
    call.cancel()
    await asyncio.gather(reader, return_exceptions=True)
