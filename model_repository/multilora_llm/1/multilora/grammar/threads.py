"""GrammarThreads: where grammars are compiled, away from whatever else takes time.

Laws: what was submitted runs, also while closing. Only so many may wait.
"""

import queue
import threading
from collections.abc import Callable

from multilora.errors import too_many

STACK_BYTES = 256 << 20  # of addresses: llguidance recurses as deep as a schema goes
_THREADS = 2
_CLOSE_SECONDS = 10.0


class GrammarThreads:
    """`most` pieces of work may wait or run at a time. Pieces must not raise."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards _open
        self._open = 0
        before = threading.stack_size(STACK_BYTES)
        try:
            self._threads = [self._start(number) for number in range(_THREADS)]
        finally:
            threading.stack_size(before)

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work` on one of the threads. RequestError (UNAVAILABLE): too many wait."""
        with self._lock:
            if self._open >= self._most:
                raise too_many(f"{self._open} grammars are being compiled or wait for that")
            self._open += 1
        self._work.put(work)

    def close(self) -> None:
        """Let what was submitted end; one that hangs must not keep the server from stopping."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS)

    def _start(self, number: int) -> threading.Thread:
        thread = threading.Thread(target=self._loop, name=f"grammar-{number}", daemon=True)
        thread.start()
        return thread

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            finally:
                with self._lock:
                    self._open -= 1
