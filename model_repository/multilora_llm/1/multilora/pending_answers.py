"""Answers that the engine thread owes to other threads, each with a time limit."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from multilora.errors import ErrorCode, RequestError


@dataclass(frozen=True, eq=False)
class PendingAnswer:
    """`reason` says what takes so long, when it does. Completed by the engine thread."""

    adapter_id: str
    reason: str
    deadline: float  # time.monotonic()
    future: "Future[Any]" = field(default_factory=Future)

    @staticmethod
    def within(seconds: float, adapter_id: str, reason: str) -> "PendingAnswer":
        return PendingAnswer(adapter_id, reason, time.monotonic() + seconds)

    def complete(self, error: RequestError | None, result: Callable[[], Any]) -> None:
        """Give the result, or the error; one that has timed out has had its answer."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result())
        else:
            self.future.set_exception(error)


class PendingAnswers:
    """Engine thread only."""

    def __init__(self) -> None:
        self._answers: list[PendingAnswer] = []

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, answer: PendingAnswer) -> None:
        self._answers.append(answer)

    def tick(self) -> None:
        """Answer those who have waited long enough; what they wait for goes on."""
        now = time.monotonic()
        for answer in self._answers:
            if now >= answer.deadline:
                self._refuse(
                    answer,
                    f"adapter {answer.adapter_id!r}: {answer.reason} after the time-out; that goes "
                    "on, so ask again later or send a larger timeout",
                )
        self._answers = [answer for answer in self._answers if not answer.future.done()]

    def close(self) -> None:
        for answer in self._answers:
            self._refuse(answer, "the server is shutting down")
        self._answers.clear()

    def _refuse(self, answer: PendingAnswer, message: str) -> None:
        answer.complete(RequestError(ErrorCode.UNAVAILABLE, message), lambda: None)
