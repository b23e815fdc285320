"""WaitingQueue: the sequences that wait, and which of them may start now.

FairQueue gives the order, PageReservations hold room for starved adapters, time-outs end what waits
too long for a load. A sequence whose adapter is loading, has no room, or is held back by another's
reservation is passed over. Of many such adapters only some are asked for again in each pass, in
turn.
"""

import heapq
from collections.abc import Callable, Collection, Iterator
from itertools import islice

from multilora.errors import ErrorCode, RequestError
from multilora.request import AdapterSet, Request
from multilora.scheduling.adapter_cache import AdapterCache, CacheMiss
from multilora.scheduling.fair_queue import FairQueue
from multilora.scheduling.reservations import PageReservations
from multilora.scheduling.sequence import Sequence, SequenceStatus

_MOST_ASKED_AGAIN = 64  # adapters a pass: asking costs microseconds, and thousands may wait
_RECHECK_SECONDS = 1.0


class WaitingQueue:
    """Owned by the scheduler. `clock` counts seconds."""

    def __init__(
        self, cache: AdapterCache, quantum: int, patience: int, clock: Callable[[], float]
    ) -> None:
        self._queue = FairQueue(quantum)
        self._cache = cache
        self._reservations = PageReservations(cache, patience)
        self._deadlines = _Deadlines()
        self._clock = clock
        self._passed_over: dict[AdapterSet, None] = {}  # longest not asked for first

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._queue)

    def counts(self) -> dict[AdapterSet, int]:
        """How many sequences of each adapter set wait."""
        return self._queue.counts()

    def add(self, sequence: Sequence) -> None:
        """A new sequence, or a preempted one."""
        self._queue.push(sequence)
        if sequence.request.adapters and not sequence.admitted:
            self._deadlines.add(sequence, self._clock() + sequence.request.adapter_timeout)

    def remove(self, sequence: Sequence) -> None:
        """The sequence ended while it waited."""
        self._queue.remove(sequence)
        adapters = sequence.request.adapters
        if adapters not in self._queue:
            self._reservations.settle(adapters)
            self._passed_over.pop(adapters, None)
            self._cache.unwanted(adapters)

    def take(self, sequence: Sequence) -> None:
        """The sequence starts to run."""
        self._queue.take(sequence)
        adapters = sequence.request.adapters
        self._reservations.settle(adapters)
        if adapters not in self._queue:
            self._cache.unwanted(adapters)

    @property
    def next_deadline(self) -> float | None:
        """When the first adapter_timeout ends, on the clock."""
        return self._deadlines.next

    def candidates(self, running: Collection[Sequence]) -> Iterator[Sequence]:
        """See FairQueue.candidates. Call it once in each pass, also when nothing can be taken."""
        self._reservations.begin(running)
        most = _MOST_ASKED_AGAIN if running else None  # nothing runs: there is time for all
        for adapters in [*islice(self._passed_over, most), *self._reservations.open]:
            self._passed_over.pop(adapters, None)
        return self._queue.candidates(without=self._passed_over)

    def acquire(self, sequence: Sequence) -> AdapterSet | CacheMiss:
        """Reference the adapters' pages for `sequence` → their key. RequestError: it failed."""
        adapters = sequence.request.adapters
        if not adapters:
            return adapters
        found: AdapterSet | CacheMiss = CacheMiss.NO_ROOM
        if self._reservations.admits(sequence):
            found = self._cache.acquire(adapters)
        if found is CacheMiss.NO_ROOM:
            self._reservations.refuse(adapters)
        elif found is CacheMiss.LOADING:
            self._reservations.wait_for_load(adapters)
        if isinstance(found, CacheMiss):
            self._passed_over[adapters] = None
        return found

    def overdue(self) -> Iterator[tuple[Sequence, RequestError]]:
        """Sequences whose adapter is still being loaded after their adapter_timeout.

        They should be ended; the load goes on.
        """
        for sequence in self._deadlines.due(self._clock()):
            try:
                found = self.acquire(sequence)
            except RequestError as error:
                yield sequence, error
                continue
            if found is CacheMiss.LOADING:
                yield sequence, _still_loading(sequence.request)
            elif isinstance(found, AdapterSet):
                self._cache.release(found)


class _Deadlines:
    """Deadlines of the sequences that wait for their first pass; looking costs O(1)."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []
        self._sweep_at = 1024

    @property
    def next(self) -> float | None:
        """The first deadline, of a sequence that may have ended meanwhile."""
        return self._heap[0][0] if self._heap else None

    def add(self, sequence: Sequence, deadline: float) -> None:
        if len(self._heap) >= self._sweep_at:  # do not keep what has ended until its deadline
            self._heap = [entry for entry in self._heap if _waits(entry[2])]
            heapq.heapify(self._heap)
            self._sweep_at = 2 * len(self._heap) + 1024
        heapq.heappush(self._heap, (deadline, sequence.arrival, sequence))

    def due(self, now: float) -> list[Sequence]:
        """Sequences that still wait past their deadline; each again in a while if it lives on."""
        due: list[Sequence] = []
        while self._heap and self._heap[0][0] <= now:
            sequence = heapq.heappop(self._heap)[2]
            if _waits(sequence):
                due.append(sequence)
        for sequence in due:
            self.add(sequence, now + _RECHECK_SECONDS)
        return due


def _waits(sequence: Sequence) -> bool:
    return sequence.status is SequenceStatus.WAITING and not sequence.admitted


def _still_loading(request: Request) -> RequestError:
    return RequestError(
        ErrorCode.UNAVAILABLE,
        f"adapter {request.adapter_id!r} is still being loaded after "
        f"{request.adapter_timeout:g} s; try again later or send a larger adapter_timeout",
    )
