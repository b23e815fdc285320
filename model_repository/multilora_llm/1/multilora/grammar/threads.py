"""GrammarThreads: where grammars are compiled, so that no other thread has to wait for them.

Laws: work that was submitted runs, even while closing. A bounded number of pieces may wait.
"""

import queue
import threading
from collections.abc import Callable

from multilora.errors import too_many

STACK_BYTES = 256 << 20  # of address space: llguidance recurses as deep as a schema is nested
_THREADS = 2
_CLOSE_SECONDS = 10.0


class GrammarThreads:
    """`most` pieces of work may wait or run at a time. A piece of work must not raise."""

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
        """Run `work` on one of the threads. RequestError (UNAVAILABLE): too many pieces wait."""
        with self._lock:
            if self._open >= self._most:
                raise too_many(f"{self._open} grammars are being compiled or wait for that")
            self._open += 1
        self._work.put(work)

    def close(self) -> None:
        """Wait for the submitted work, but not for ever: the server must be able to stop."""
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
