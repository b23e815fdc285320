"""The loader threads: they bring adapters from their source into host memory.

A loader knows nothing of adapters: its threads call `read` and report what came of the call. The
engine thread asks for a source (`request`) and later polls `results`; `wake` tells the engine
thread that there is a result. Folders have threads of their own, so that no adapter on disk waits
behind a slow download: two, so that one reads while the other looks at what it has read.
"""

import logging
import queue
import time
from collections.abc import Callable
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from multilora.adapters.background_thread import background_thread
from multilora.adapters.naming.source import AdapterSource
from multilora.errors import RequestError, internal

LoadedT = TypeVar("LoadedT")
_FOLDER_THREADS = 2
_MOST_QUEUED = 4  # sources that wait in a lane: enough to keep it busy over a pass of the engine

_Lane = queue.SimpleQueue[tuple[AdapterSource, int] | None]


class LoadResult(NamedTuple, Generic[LoadedT]):
    """Exactly one of `adapter` and `error` is set; `ticket` is that of the request."""

    source: AdapterSource
    ticket: int
    seconds: float
    adapter: LoadedT | None
    error: RequestError | None


class AdapterLoader(Generic[LoadedT]):
    """Threads around `read(source)`, which raises RequestError when it cannot.

    `downloads` is how many sources outside this machine are read at once.
    """

    def __init__(
        self,
        read: Callable[[AdapterSource], LoadedT],
        wake: Callable[[], None],
        downloads: int = 1,
    ) -> None:
        self.results: queue.SimpleQueue[LoadResult[LoadedT]] = queue.SimpleQueue()
        self._folders: _Lane = queue.SimpleQueue()
        self._downloads: _Lane = queue.SimpleQueue()
        self._read = read
        self._wake = wake
        self._closed = False
        lanes = [self._folders] * _FOLDER_THREADS + [self._downloads] * downloads
        self._threads = [
            background_thread("adapter-loader", partial(self._loop, lane)) for lane in lanes
        ]
        for thread in self._threads:
            thread.start()

    def has_room(self, source: AdapterSource) -> bool:
        """False while so many sources wait before this one that asking for it can wait too.

        An adapter that has not been asked for takes no memory yet.
        """
        return self._lane(source).qsize() < _MOST_QUEUED

    def request(self, source: AdapterSource, ticket: int = 0) -> None:
        self._lane(source).put((source, ticket))

    def close(self) -> None:
        """Stop after the loads in progress. A download may go on after this returns."""
        self._closed = True
        for lane in (self._folders, self._downloads):
            for _ in self._threads:
                lane.put(None)
        deadline = time.monotonic() + 5
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _lane(self, source: AdapterSource) -> _Lane:
        return self._folders if source.is_folder else self._downloads

    def _loop(self, lane: _Lane) -> None:
        while (wanted := lane.get()) is not None and not self._closed:
            self.results.put(self._load(*wanted))
            self._wake()

    def _load(self, source: AdapterSource, ticket: int) -> LoadResult[LoadedT]:
        start = time.monotonic()
        adapter, failure = None, None
        try:
            adapter = self._read(source)
        except RequestError as error:
            failure = error
        except Exception as error:
            logging.getLogger(__name__).exception("loading adapter %s", source.adapter_id)
            message = f"adapter {source.adapter_id!r} could not be loaded: {error!r}"
            failure = internal(message)
        return LoadResult(source, ticket, time.monotonic() - start, adapter, failure)
