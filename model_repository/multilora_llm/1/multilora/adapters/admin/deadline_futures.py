"""Futures that the engine thread completes for other threads, each within a time limit."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from multilora.adapters.naming.source import named_error
from multilora.errors import ErrorCode, RequestError, shutting_down


@dataclass(frozen=True, eq=False)
class DeadlineFuture:
    """`reason` says what takes so long, when the deadline passes. Any thread may complete it."""

    adapter_id: str
    reason: str
    deadline: float  # time.monotonic()
    future: "Future[Any]" = field(default_factory=Future)

    def complete(self, error: RequestError | None, result: Callable[[], Any]) -> None:
        """Set the result, or the error. Nothing happens when the future is done already, by its
        deadline or by another thread."""
        if self.future.done():
            return
        with suppress(InvalidStateError):
            if error is None:
                self.future.set_result(result())
            else:
                self.future.set_exception(error)


class DeadlineFutures:
    """Any thread opens a future; the engine thread ticks, so that each future is done in time."""

    def __init__(self) -> None:
        self._futures: list[DeadlineFuture] = []
        self._lock = threading.Lock()  # guards both
        self._closed = False

    def __len__(self) -> int:
        return len(self._futures)

    @property
    def next_deadline(self) -> float | None:
        """The earliest one. Another thread may complete that future meanwhile."""
        return min((future.deadline for future in self._pending()), default=None)

    def open(self, seconds: float, adapter_id: str, reason: str) -> DeadlineFuture:
        """A future with a deadline in `seconds`. RequestError: the engine thread has stopped."""
        future = DeadlineFuture(adapter_id, reason, time.monotonic() + seconds)
        with self._lock:
            if self._closed:
                raise shutting_down()
            self._futures.append(future)
        return future

    def tick(self) -> None:
        """Fail the futures whose deadline has passed; the work that they wait for goes on."""
        now = time.monotonic()
        for future in self._pending():
            if now >= future.deadline:
                late = RequestError(
                    ErrorCode.UNAVAILABLE,
                    f"{future.reason} after the time-out; that goes on, so ask again later or send "
                    "a larger timeout",
                )
                future.complete(named_error(future.adapter_id, late), lambda: None)

    def close(self) -> None:
        """Fail all futures, and open no more."""
        with self._lock:
            self._closed = True
        for future in self._pending():
            future.complete(shutting_down(), lambda: None)

    def _pending(self) -> list[DeadlineFuture]:
        with self._lock:
            self._futures = [future for future in self._futures if not future.future.done()]
            return self._futures
