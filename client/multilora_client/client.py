"""The synchronous client. One object may be used from many threads, with many streams at once.

What the methods do is written in aio.py; see blocking.py for how its coroutines run here.
"""

from collections.abc import Iterator
from typing import Any

from multilora_client.adapters.client import Adapters
from multilora_client.aio import AsyncMultiLoRAClient, AsyncTextStream
from multilora_client.blocking import BlockingChannel, BlockingStub, blocking, parameters_of, run
from multilora_client.connection import Endpoint
from multilora_client.protocol import Generation


class _Blocking(AsyncMultiLoRAClient):
    """The client whose coroutines block."""

    def _connect(self, endpoint: Endpoint) -> tuple[BlockingChannel, BlockingStub]:
        channel = endpoint.channel()
        return BlockingChannel(channel), BlockingStub(channel)


class MultiLoRAClient:
    """Generates text on a Triton server with any adapter it knows; `adapters` administers them.

    `timeout` is in seconds per request; None waits for ever. `admin_key` is what a server that was
    started with one wants for changes of adapters. Every method raises MultiLoRAError or
    one of its subclasses. Closing the client cancels what is still running.
    A daemon thread reads each stream until it ends.
    """

    @parameters_of(AsyncMultiLoRAClient.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._asyncio = _Blocking(*args, **kwargs)
        self.url = self._asyncio.url
        self.adapters = Adapters(self._asyncio.adapters)

    generate = blocking(AsyncMultiLoRAClient.generate)
    chat = blocking(AsyncMultiLoRAClient.chat)
    cancel = blocking(AsyncMultiLoRAClient.cancel)
    close = blocking(AsyncMultiLoRAClient.close)

    @parameters_of(AsyncMultiLoRAClient.stream)
    def stream(self, *args: Any, **kwargs: Any) -> "TextStream":
        """The answer in pieces as they are generated. The request is sent at once."""
        return TextStream(self._asyncio.stream(*args, **kwargs))

    def __enter__(self) -> "MultiLoRAClient":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class TextStream(Iterator[str]):
    """The pieces of one answer, then its `result`. Closed or dropped early, it cancels the request.

    Made by MultiLoRAClient.
    """

    def __init__(self, stream: AsyncTextStream) -> None:
        self._asyncio = stream
        self.request_id: str = stream.request_id

    @property
    def result(self) -> Generation:
        """The whole answer; RuntimeError before the stream was read to its end."""
        return self._asyncio.result

    def __next__(self) -> str:
        try:
            return run(self._asyncio.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Cancel the request unless it has ended. Safe to repeat, and from another thread."""
        run(self._asyncio.close())

    def __enter__(self) -> "TextStream":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
