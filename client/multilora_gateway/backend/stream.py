"""One generation's gRPC stream, read to its end whatever becomes of its client.

Law: a stream is not cancelled while its server lives. The Triton server loses a request that is
cancelled while its last word is being written, and cannot stop in order afterwards. Instead the
engine is told to stop it, and what is still said is read.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from multilora_client.errors import MultiLoRAError

_STOP_SECONDS = 0.5  # until it is asked again: the request itself may not have arrived yet
_STOPS = 20


class EngineStream:
    """Make it inside the running event loop, iterate over its messages, then `leave` it.

    `call` is grpc.aio's; `stop` asks the engine to end the request and raises MultiLoRAError when
    nobody is there to be asked.
    """

    def __init__(self, call: Any, stop: Callable[[], Awaitable[None]]) -> None:
        self._call = call
        self._stop = stop
        self._messages: asyncio.Queue[Any] | None = asyncio.Queue()
        self.at_end = False  # it was read to its end: there is nothing to leave
        # of its own: to cancel who waits for a message of grpc.aio's is to cancel the stream
        self._reader = asyncio.create_task(self._read())

    def __aiter__(self) -> "EngineStream":
        return self

    async def __anext__(self) -> Any:
        assert self._messages is not None, "it has been left"
        message = await self._messages.get()
        if message is None:
            self.at_end = True
            self._reader.result()  # how it ended
            raise StopAsyncIteration
        return message

    def cancel(self) -> None:
        """The server is gone: nothing can be lost any more."""
        self._call.cancel()

    async def leave(self, ended: bool) -> None:
        """Nobody listens any more; returns at the end of the stream. `ended`: the last word, or an
        error, has been said."""
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
