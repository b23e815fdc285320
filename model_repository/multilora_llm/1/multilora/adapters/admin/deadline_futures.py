"""Answers that the engine thread owes to other threads, each with a time limit."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from multilora.errors import ErrorCode, RequestError, shutting_down


@dataclass(frozen=True, eq=False)
class PendingAnswer:
    """`reason` says what takes so long, when it does. Any thread may complete it."""

    adapter_id: str
    reason: str
    deadline: float  # time.monotonic()
    future: "Future[Any]" = field(default_factory=Future)

    def complete(self, error: RequestError | None, result: Callable[[], Any]) -> None:
        """Give the result, or the error, unless another thread was first: one that has timed out
        has had its answer."""
        if self.future.done():
            return
        with suppress(InvalidStateError):
            if error is None:
                self.future.set_result(result())
            else:
                self.future.set_exception(error)


class PendingAnswers:
    """Any thread opens an answer; the engine thread does the rest, so that each gets its answer."""

    def __init__(self) -> None:
        self._answers: list[PendingAnswer] = []
        self._lock = threading.Lock()  # guards both
        self._closed = False

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def next_deadline(self) -> float | None:
        """Of one that may have been given meanwhile."""
        return min((answer.deadline for answer in self._take()), default=None)

    def open(self, seconds: float, adapter_id: str, reason: str) -> PendingAnswer:
        """What the engine thread will answer within `seconds`. RequestError: it has stopped."""
        answer = PendingAnswer(adapter_id, reason, time.monotonic() + seconds)
        with self._lock:
            if self._closed:
                raise shutting_down()
            self._answers.append(answer)
        return answer

    def tick(self) -> None:
        """Answer those who have waited long enough; what they wait for goes on."""
        now = time.monotonic()
        for answer in self._take():
            if now >= answer.deadline:
                message = (
                    f"adapter {answer.adapter_id!r}: {answer.reason} after the time-out; that goes "
                    "on, so ask again later or send a larger timeout"
                )
                answer.complete(RequestError(ErrorCode.UNAVAILABLE, message), lambda: None)

    def close(self) -> None:
        """No answer comes any more."""
        with self._lock:
            self._closed = True
        for answer in self._take():
            answer.complete(shutting_down(), lambda: None)

    def _take(self) -> list[PendingAnswer]:
        """Those that are still to be given."""
        with self._lock:
            self._answers = [answer for answer in self._answers if not answer.future.done()]
            return self._answers
