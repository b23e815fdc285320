"""Transfer: one adapter on its way to this machine, with its limits, its clock and its progress.

Laws: nothing waits past the deadline, whatever the other side does; no byte above the limit is
kept.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TypeVar

from multilora.errors import ErrorCode, RequestError, invalid

_LOG = logging.getLogger("multilora.download")
_REPORT_SECONDS = 1.0
_BAR_WIDTH = 20
_MB = 10**6

T = TypeVar("T")


@dataclass(frozen=True)
class DownloadLimits:
    """How many bytes an adapter may have, and how many seconds its download may take."""

    max_bytes: int = 4 << 30
    seconds: float = 1800.0


class Interrupted(RequestError):
    """The other side cannot be reached, or broke off: the next attempt may well succeed."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.UNAVAILABLE, message)


class Transfer:
    """Counts the bytes of one adapter against its limits; `name` is how the log calls it."""

    def __init__(self, name: str, limits: DownloadLimits) -> None:
        self.received = 0
        self._name = name
        self._limits = limits
        self._total: int | None = None
        self._start = time.monotonic()
        self._next_report = self._start

    def begin(self, total: int | None) -> None:
        """Begin to receive `total` bytes (None: not all sizes are known); INVALID_ARG: too many."""
        self._total = total
        self.received = 0
        if total is not None and total > self._limits.max_bytes:
            raise self._too_large(f"has {total / _MB:.1f} MB")
        self._report()

    def count(self, num_bytes: int) -> None:
        """Count `num_bytes` more (negative: fewer); RequestError when a limit is crossed."""
        self.received += num_bytes
        if self.received > self._limits.max_bytes:
            raise self._too_large(f"sent more than {self._limits.max_bytes / _MB:.1f} MB")
        self.remaining()
        if time.monotonic() >= self._next_report:
            self._report()

    def finish(self) -> None:
        seconds = time.monotonic() - self._start
        _LOG.info("%s in %.1f s", self.progress(), seconds)

    def remaining(self) -> float:
        """Seconds left, more than 0; RequestError (UNAVAILABLE) when none are."""
        left = self._start + self._limits.seconds - time.monotonic()
        if left <= 0:
            raise self._too_late()
        return left

    def pause(self, seconds: float) -> None:
        time.sleep(min(seconds, self.remaining()))
        self.remaining()

    def call(self, function: Callable[[], T], too_late: Callable[[T], object] | None = None) -> T:
        """function() in a thread of its own, which is abandoned when the time is over.

        `too_late` gets what an abandoned call returns in the end. Errors of `function` are raised
        here.
        """
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=work, name="download-call", daemon=True).start()
        wait([future], timeout=self.remaining())
        if future.done():
            return future.result()
        if too_late:
            future.add_done_callback(lambda done: done.exception() or too_late(done.result()))
        raise self._too_late()

    def progress(self) -> str:
        """`adapter sql: [#########...........]  45 %  38/84 MB`"""
        if not self._total:
            return f"{self._name}: {_size(self.received)} MB"
        part = min(1.0, self.received / self._total)
        bar = ("#" * int(part * _BAR_WIDTH)).ljust(_BAR_WIDTH, ".")
        figures = f"{_size(self.received)}/{_size(self._total)} MB"
        return f"{self._name}: [{bar}] {int(part * 100):3d} %  {figures}"

    def _report(self) -> None:
        self._next_report = time.monotonic() + _REPORT_SECONDS
        _LOG.info("%s", self.progress())

    def _too_large(self, what: str) -> RequestError:
        limit = f"{self._limits.max_bytes / _MB:.1f} MB"
        return invalid(
            f"the adapter {what}, and --adapter-max-size is {limit}; raise --adapter-max-size or "
            "serve a smaller adapter"
        )

    def _too_late(self) -> RequestError:
        return RequestError(
            ErrorCode.UNAVAILABLE,
            f"the download took more than --adapter-download-timeout {self._limits.seconds:g} s "
            f"({_size(self.received)} MB arrived); try again, which goes on from there, or raise "
            "--adapter-download-timeout",
        )


class Retries:
    """A few more attempts after an interruption, within the limits of `transfer`."""

    PAUSES = (0.2, 1.0, 3.0)  # seconds
    PROGRESS = 1 << 20  # bytes: an interruption after so many more begins a new count

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._mark = transfer.received
        self._used = 0

    def wait(self, error: Interrupted) -> None:
        """Sleep before the next attempt; raises `error` when there have been enough."""
        if self._transfer.received - self._mark >= self.PROGRESS:
            self._used = 0
        self._mark = self._transfer.received
        if self._used == len(self.PAUSES):
            raise error
        self._transfer.pause(self.PAUSES[self._used])
        self._used += 1


def _size(num_bytes: int) -> str:
    """Megabytes: three significant digits below 10."""
    return f"{num_bytes / _MB:.2f}" if num_bytes < 10 * _MB else f"{num_bytes / _MB:.0f}"
