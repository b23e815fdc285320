"""The gRPC stream of one generation, read to its end also after its client has gone.

Law: a stream is not cancelled while its server lives. The Triton server loses a request that is
cancelled while the last response is being written, and cannot stop in order afterwards. Instead the
engine is told to stop the request, and the remaining responses are read.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from multilora_client.errors import MultiLoRAError

_STOP_SECONDS = 0.5  # between two stops, for the first may overtake the request itself
_STOPS = 20


class EngineStream:
    """The messages of a stream. Make an EngineStream inside the running event loop, iterate over
    its messages, then call `leave`.

    `call` is grpc.aio's. `stop` asks the engine to end the request, and raises MultiLoRAError when
    no engine answers.
    """

    def __init__(self, call: Any, stop: Callable[[], Awaitable[None]]) -> None:
        self._call = call
        self._stop = stop
        self._messages: asyncio.Queue[Any] | None = asyncio.Queue()
        self.at_end = False  # once every message was read, there is nothing to leave
        # A task of its own reads: cancelling a task that waits for grpc.aio cancels the stream.
        self._reader = asyncio.create_task(self._read())

    def __aiter__(self) -> "EngineStream":
        return self

    async def __anext__(self) -> Any:
        assert self._messages is not None, "the stream has been left"
        message = await self._messages.get()
        if message is None:
            self.at_end = True
            self._reader.result()  # raises the error that ended the stream
            raise StopAsyncIteration
        return message

    def cancel(self) -> None:
        """For a server that is gone, which can lose nothing any more."""
        self._call.cancel()

    async def leave(self, ended: bool) -> None:
        """Drop the remaining messages; returns at the end of the stream. `ended` says that the last
        response, or an error, has come already."""
        self._messages = None
        for _ in range(_STOPS):
            if self._reader.done():
                break
            try:
                if not ended:
                    await self._stop()
            except MultiLoRAError:
                break
            await asyncio.wait((self._reader,), timeout=_STOP_SECONDS)
        self._call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        try:
            async for message in self._call:
                if self._messages:
                    self._messages.put_nowait(message)
        finally:
            if self._messages:
                self._messages.put_nowait(None)
