"""When clients who were refused may come again."""

import time
from collections.abc import Callable

from multilora_gateway.errors import RETRY_SECONDS

MOST_RETRY_SECONDS = 30


class RetryTimes:
    """Spreads the returns of refused clients: each gets the next free time, so that no more come
    again in RETRY_SECONDS than the server has `places`. Nobody is sent away for longer than
    MOST_RETRY_SECONDS: when all times until then are taken, they are given again from the first.

    A refusal costs the gateway a millisecond, which the streams of those who were let in wait for:
    were all told the same time, 50 times as many clients as places would take half of the gateway.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.places = 1  # how many requests the server runs or keeps waiting at once
        self._clock = clock
        self._last = clock()

    def next(self) -> int:
        """Seconds for the next Retry-After."""
        now = self._clock()
        first, free = now + RETRY_SECONDS, self._last + RETRY_SECONDS / self.places
        self._last = free if first < free <= now + MOST_RETRY_SECONDS else first
        return round(self._last - now)
