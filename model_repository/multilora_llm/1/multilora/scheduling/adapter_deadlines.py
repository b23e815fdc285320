"""How long each sequence waits for an adapter that is being loaded."""

import heapq

from multilora.scheduling.sequence import Sequence, SequenceStatus

_RECHECK_SECONDS = 1.0


class AdapterDeadlines:
    """Deadlines of the sequences that wait for their first pass; looking costs O(1)."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []
        self._sweep_at = 1024

    def add(self, sequence: Sequence, now: float) -> None:
        self._push(sequence, now + sequence.request.adapter_timeout)

    @property
    def next(self) -> float | None:
        """Of a sequence that may have ended meanwhile."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[Sequence]:
        """Sequences that still wait past their deadline; each again in a while if it lives on."""
        due: list[Sequence] = []
        while self._heap and self._heap[0][0] <= now:
            sequence = heapq.heappop(self._heap)[2]
            if _waits(sequence):
                due.append(sequence)
        for sequence in due:
            self._push(sequence, now + _RECHECK_SECONDS)
        return due

    def _push(self, sequence: Sequence, deadline: float) -> None:
        if len(self._heap) >= self._sweep_at:  # do not keep what has ended until its deadline
            self._heap = [entry for entry in self._heap if _waits(entry[2])]
            heapq.heapify(self._heap)
            self._sweep_at = 2 * len(self._heap) + 1024
        heapq.heappush(self._heap, (deadline, sequence.arrival, sequence))


def _waits(sequence: Sequence) -> bool:
    return sequence.status is SequenceStatus.WAITING and not sequence.admitted
