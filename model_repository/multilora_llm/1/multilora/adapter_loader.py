"""The loader thread: brings adapters from their source into host memory, one after another.

It knows nothing of adapters: it calls `read` and reports what came of it. The engine thread
asks (`request`) and later collects (`results`); `wake` tells it that there is something new.
"""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from multilora.adapter_source import AdapterSource
from multilora.errors import ErrorCode, RequestError

LoadedT = TypeVar("LoadedT")


class LoadResult(NamedTuple, Generic[LoadedT]):
    """Exactly one of `adapter` and `error` is set."""

    source: AdapterSource
    adapter: LoadedT | None
    error: RequestError | None


class AdapterLoader(Generic[LoadedT]):
    """A thread around `read(source)`, which raises RequestError when it cannot."""

    def __init__(self, read: Callable[[AdapterSource], LoadedT], wake: Callable[[], None]) -> None:
        self.results: queue.SimpleQueue[LoadResult[LoadedT]] = queue.SimpleQueue()
        self._wanted: queue.SimpleQueue[AdapterSource | None] = queue.SimpleQueue()
        self._read = read
        self._wake = wake
        self._thread = threading.Thread(target=self._loop, name="adapter-loader", daemon=True)
        self._thread.start()

    def request(self, source: AdapterSource) -> None:
        self._wanted.put(source)

    def close(self) -> None:
        """Stop after the load in progress; a download may outlast the wait."""
        self._wanted.put(None)
        self._thread.join(timeout=5)

    def _loop(self) -> None:
        while (source := self._wanted.get()) is not None:
            try:
                result = LoadResult(source, self._read(source), None)
            except RequestError as error:
                result = LoadResult(source, None, error)
            except Exception as error:
                logging.getLogger(__name__).exception("loading adapter %s", source.adapter_id)
                message = f"adapter {source.adapter_id!r} could not be loaded: {error!r}"
                result = LoadResult(source, None, RequestError(ErrorCode.INTERNAL, message))
            self.results.put(result)
            self._wake()
