"""Who is next: waiting sequences, one queue per adapter, served by deficit round-robin over tokens.

The base model's queue ("") is one of them. A queue earns `quantum` tokens a round and pays
`Sequence.cost` for each sequence that is taken, so over time every adapter with work gets the same
number of tokens, however many sequences the others have waiting (Shreedhar and Varghese, "Efficient
Fair Queuing Using Deficit Round Robin", 1995). A queue that is passed over keeps its place and what
it has earned; one that runs empty keeps neither. A preempted sequence has paid already: it comes
back in front of every queue, oldest first, so that blocks go to the streams that have begun.
"""

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator

from multilora.scheduling.sequence import Sequence


class _Queue:
    """The sequences of one adapter that never ran, by arrival; never empty while it is listed."""

    def __init__(self, adapter_id: str, earned: int) -> None:
        self.adapter_id = adapter_id
        self.earned = earned  # tokens it may spend
        self.sequences: OrderedDict[Sequence, None] = OrderedDict()

    @property
    def head(self) -> Sequence:
        return next(iter(self.sequences))


class FairQueue:
    """`push`, then `turns` and `remove`; each costs O(1) for any number of adapters and sequences.

    Starting a pass over the turns costs O(adapters).
    """

    def __init__(self, quantum: int) -> None:
        self.quantum = quantum
        self._queues: OrderedDict[str, _Queue] = OrderedDict()  # the next one in the round first
        self._preempted: list[Sequence] = []  # by arrival
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._preempted
        for queue in self._queues.values():
            yield from queue.sequences

    def __contains__(self, adapter_id: str) -> bool:
        """Does a sequence of this adapter wait?"""
        return adapter_id in self._queues or any(
            sequence.request.adapter_id == adapter_id for sequence in self._preempted
        )

    def counts(self) -> dict[str, int]:
        """adapter id → waiting sequences."""
        counts = {name: len(queue.sequences) for name, queue in self._queues.items()}
        for sequence in self._preempted:
            adapter_id = sequence.request.adapter_id
            counts[adapter_id] = counts.get(adapter_id, 0) + 1
        return counts

    def push(self, sequence: Sequence) -> None:
        """A new sequence goes to the end of its adapter's queue, a preempted one to the front."""
        self._length += 1
        if sequence.admitted:
            insort(self._preempted, sequence, key=lambda other: other.arrival)
            return
        adapter_id = sequence.request.adapter_id
        queue = self._queues.get(adapter_id)
        if queue is None:
            queue = self._queues[adapter_id] = _Queue(adapter_id, self.quantum)
        queue.sequences[sequence] = None

    def remove(self, sequence: Sequence) -> None:
        """The sequence ended while it waited."""
        self._length -= 1
        if sequence.admitted:
            self._preempted.remove(sequence)
            return
        queue = self._queues[sequence.request.adapter_id]
        del queue.sequences[sequence]
        if not queue.sequences:
            del self._queues[queue.adapter_id]

    def take(self, sequence: Sequence) -> None:
        """The sequence whose turn it is starts to run; its queue pays."""
        if not sequence.admitted:
            self._queues[sequence.request.adapter_id].earned -= sequence.cost
        self.remove(sequence)
        sequence.admitted = True

    def turns(self, without: Iterable[str] = ()) -> Iterator[Sequence]:
        """Each sequence whose turn it is: take it, remove it or leave it. Stop at will.

        The adapters of `without`, and those whose sequence was left, have no turn in this pass.
        """
        left = set(without)
        for sequence in list(self._preempted):
            adapter_id = sequence.request.adapter_id
            if adapter_id not in left:
                yield sequence
                if sequence in self._preempted:
                    left.add(adapter_id)
        ring = deque(queue for queue in self._queues.values() if queue.adapter_id not in left)
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
            self._queues.move_to_end(queue.adapter_id)
            ring.rotate(-1)
            turned += 1
