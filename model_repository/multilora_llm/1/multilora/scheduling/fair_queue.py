"""FairQueue: one queue of waiting sequences per adapter set, in deficit round-robin over tokens.

The base model's queue is one of them. A queue earns `quantum` tokens a round and pays
`Sequence.cost` for each sequence that is taken, so over time every adapter with work gets the same
number of tokens, however many sequences the others have waiting (Shreedhar and Varghese, "Efficient
Fair Queuing Using Deficit Round Robin", 1995). A queue that is passed over keeps its place and what
it has earned; one that runs empty keeps neither. A preempted sequence has paid already: it comes
back in front of every queue, oldest first, so that blocks go to the streams that have begun.
"""

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Container, Iterator

from multilora.request import AdapterSet
from multilora.scheduling.sequence import Sequence


class _Queue:
    """Sequences of one adapter set that have not run yet, by arrival; never empty in a round."""

    def __init__(self, adapters: AdapterSet, earned: int) -> None:
        self.adapters = adapters
        self.earned = earned  # tokens it may spend
        self.sequences: OrderedDict[Sequence, None] = OrderedDict()

    @property
    def head(self) -> Sequence:
        return next(iter(self.sequences))


class FairQueue:
    """`push`, then `candidates`, `take` and `remove`; each costs O(1) for any number of sequences.

    Starting a pass over the candidates costs O(adapter sets).
    """

    def __init__(self, quantum: int) -> None:
        self.quantum = quantum
        # The queue that is next in the round comes first.
        self._queues: OrderedDict[AdapterSet, _Queue] = OrderedDict()
        self._preempted: list[Sequence] = []  # by arrival
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._preempted
        for queue in self._queues.values():
            yield from queue.sequences

    def __contains__(self, adapters: AdapterSet) -> bool:
        """Does a sequence of these adapters wait?"""
        return adapters in self._queues or any(
            sequence.request.adapters == adapters for sequence in self._preempted
        )

    def counts(self) -> dict[AdapterSet, int]:
        """How many sequences of each adapter set wait."""
        counts = {name: len(queue.sequences) for name, queue in self._queues.items()}
        for sequence in self._preempted:
            adapters = sequence.request.adapters
            counts[adapters] = counts.get(adapters, 0) + 1
        return counts

    def push(self, sequence: Sequence) -> None:
        """A new sequence goes to the end of its adapter's queue, a preempted one to the front."""
        self._length += 1
        if sequence.admitted:
            insort(self._preempted, sequence, key=lambda other: other.arrival)
            return
        adapters = sequence.request.adapters
        queue = self._queues.get(adapters)
        if queue is None:
            queue = self._queues[adapters] = _Queue(adapters, self.quantum)
        queue.sequences[sequence] = None

    def remove(self, sequence: Sequence) -> None:
        """The sequence ended while it waited."""
        self._length -= 1
        if sequence.admitted:
            self._preempted.remove(sequence)
            return
        queue = self._queues[sequence.request.adapters]
        del queue.sequences[sequence]
        if not queue.sequences:
            del self._queues[queue.adapters]

    def take(self, sequence: Sequence) -> None:
        """The sequence whose turn it is starts to run; its queue pays."""
        if not sequence.admitted:
            self._queues[sequence.request.adapters].earned -= sequence.cost
        self.remove(sequence)
        sequence.admitted = True

    def candidates(self, without: Container[AdapterSet] = ()) -> Iterator[Sequence]:
        """Each sequence whose turn it is, to be taken, removed or left. Stop at will.

        Adapters in `without`, and adapters whose sequence was left, have no turn in this pass.
        """
        left: set[AdapterSet] = set()
        for sequence in list(self._preempted):
            adapters = sequence.request.adapters
            if adapters not in left and adapters not in without:
                yield sequence
                if sequence in self._preempted:
                    left.add(adapters)
        ring = deque(
            queue
            for queue in self._queues.values()
            if queue.adapters not in without and queue.adapters not in left
        )
        while ring:
            head = self._next(ring)
            yield head
            sequences = ring[0].sequences
            if not sequences or head in sequences:
                ring.popleft()

    def _next(self, ring: deque[_Queue]) -> Sequence:
        """Turn `ring`, and the round with it, until its first queue can pay for its head."""
        turned = 0
        while True:
            queue = ring[0]
            head = queue.head
            if queue.earned >= head.cost:
                return head
            if turned == len(ring):  # all were short in a row: skip the rounds that are like it
                rounds = min(-(-(other.head.cost - other.earned) // self.quantum) for other in ring)
                for other in ring:
                    other.earned += max(0, rounds - 1) * self.quantum
                turned = 0
            queue.earned += self.quantum
            self._queues.move_to_end(queue.adapters)
            ring.rotate(-1)
            turned += 1
