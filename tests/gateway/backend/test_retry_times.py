"""When refused clients may come again."""

from multilora_gateway.backend.retry_times import MOST_RETRY_SECONDS, RetryTimes
from multilora_gateway.errors import RETRY_SECONDS

PLACES = 4


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def retry_times(clock: Clock) -> RetryTimes:
    times = RetryTimes(clock)
    times.places = PLACES
    return times


def test_no_more_return_at_a_time_than_there_are_places() -> None:
    times = retry_times(Clock())
    assert [times.next() for _ in range(3 * PLACES)] == [2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8]


def test_nobody_is_sent_away_for_long() -> None:
    times = retry_times(Clock())
    assert max(times.next() for _ in range(1000)) == MOST_RETRY_SECONDS


def test_what_was_told_long_ago_counts_no_more() -> None:
    clock = Clock()
    times = retry_times(clock)
    for _ in range(1000):
        times.next()
    clock.now += MOST_RETRY_SECONDS
    assert times.next() == RETRY_SECONDS


def test_clients_far_more_than_places_come_evenly() -> None:
    """Even where each of 50 times as many clients as places returns exactly when it may."""
    clock, clients = Clock(), 50 * PLACES
    times = retry_times(clock)
    due = [clock.now] * clients
    counts: list[int] = []
    for _ in range(4 * MOST_RETRY_SECONDS):
        here = [index for index, at in enumerate(due) if at <= clock.now]
        for index in here:
            due[index] = clock.now + times.next()
        counts.append(len(here))
        clock.now += 1
    spread = counts[3 * MOST_RETRY_SECONDS :]
    assert 0 < max(spread) <= 2 * min(spread)
