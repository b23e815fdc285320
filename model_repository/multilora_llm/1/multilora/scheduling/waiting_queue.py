"""The sequences that wait, and which of them may start: fair turns, claims, time-outs of loads.

A sequence whose adapter is loading, has no room, or is held back by another's claim is passed over.
Of many such adapters only some are asked for again in each pass, in turn.
"""

from collections.abc import Callable, Collection, Iterator
from itertools import islice

from multilora.errors import ErrorCode, RequestError
from multilora.request import Request
from multilora.scheduling.adapter_cache import AdapterGate, NotReady
from multilora.scheduling.adapter_deadlines import AdapterDeadlines
from multilora.scheduling.fair_queue import FairQueue
from multilora.scheduling.reservations import AdapterClaims
from multilora.scheduling.sequence import Sequence

_MOST_ASKED_AGAIN = 64  # adapters a pass: asking costs microseconds, and thousands may wait


class Admission:
    """Owned by the scheduler. `clock` counts seconds."""

    def __init__(
        self, adapters: AdapterGate, quantum: int, patience: int, clock: Callable[[], float]
    ) -> None:
        self.queue = FairQueue(quantum)
        self._adapters = adapters
        self._claims = AdapterClaims(adapters, patience)
        self._deadlines = AdapterDeadlines()
        self._clock = clock
        self._passed_over: dict[str, None] = {}  # adapter ids, longest not asked for first

    def add(self, sequence: Sequence) -> None:
        """A new sequence."""
        self.queue.push(sequence)
        if sequence.request.adapter_id:
            self._deadlines.add(sequence, self._clock())

    def remove(self, sequence: Sequence) -> None:
        """It ended while it waited."""
        self.queue.remove(sequence)
        adapter_id = sequence.request.adapter_id
        if adapter_id not in self.queue:
            self._claims.settle(adapter_id)
            self._passed_over.pop(adapter_id, None)
            self._adapters.unwanted(adapter_id)

    def take(self, sequence: Sequence) -> None:
        """It starts to run."""
        self.queue.take(sequence)
        adapter_id = sequence.request.adapter_id
        self._claims.settle(adapter_id)
        if adapter_id not in self.queue:
            self._adapters.unwanted(adapter_id)

    @property
    def next_deadline(self) -> float | None:
        """When the first adapter_timeout ends, on the clock."""
        return self._deadlines.next

    def turns(self, running: Collection[Sequence]) -> Iterator[Sequence]:
        """See FairQueue.turns; once a pass, also when nothing can be taken."""
        self._claims.begin(running)
        most = _MOST_ASKED_AGAIN if running else None  # nothing runs: there is time for all
        for adapter_id in [*islice(self._passed_over, most), *self._claims.open]:
            self._passed_over.pop(adapter_id, None)
        return self.queue.turns(without=self._passed_over)

    def acquire(self, sequence: Sequence) -> str | NotReady:
        """Reference the adapter's pages for `sequence` → its key. RequestError: it failed."""
        adapter_id = sequence.request.adapter_id
        if not adapter_id:
            return ""
        ready = NotReady.NO_ROOM
        if self._claims.admits(sequence):
            ready = self._adapters.acquire(adapter_id)
        if ready is NotReady.NO_ROOM:
            self._claims.refuse(adapter_id)
        elif ready is NotReady.LOADING:
            self._claims.wait_for_load(adapter_id)
        if isinstance(ready, NotReady):
            self._passed_over[adapter_id] = None
        return ready

    def overdue(self) -> Iterator[tuple[Sequence, RequestError]]:
        """Sequences whose adapter is still being loaded after their adapter_timeout.

        They should be ended; the load goes on.
        """
        for sequence in self._deadlines.due(self._clock()):
            try:
                ready = self.acquire(sequence)
            except RequestError as error:
                yield sequence, error
                continue
            if ready is NotReady.LOADING:
                yield sequence, _still_loading(sequence.request)
            elif isinstance(ready, str):
                self._adapters.release(ready)


def _still_loading(request: Request) -> RequestError:
    return RequestError(
        ErrorCode.UNAVAILABLE,
        f"adapter {request.adapter_id!r} is still being loaded after "
        f"{request.adapter_timeout:g} s; try again later or send a larger adapter_timeout",
    )
