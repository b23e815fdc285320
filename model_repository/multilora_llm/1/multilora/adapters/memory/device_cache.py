"""The device tier: which adapter versions stand in the pool of rank pages, whole or being copied.

AdapterSlots decides who stands where, AdapterPages holds the tensors. Copies are made in pieces of
one layer of one adapter, the oldest copy first, up to a number of bytes a pass, so that running
streams keep their pace. A retired version gives its pages back with its last reference.
"""

from collections import deque
from dataclasses import dataclass

from multilora.adapters.checkpoint.adapter import Adapter
from multilora.adapters.memory.page_allocator import AdapterSlots
from multilora.errors import RequestError, invalid
from multilora.lora.adapter_pages import AdapterPages


@dataclass
class _Copy:
    adapter: Adapter
    pages: tuple[int, ...]
    layer: int = 0  # the next one


class AdapterPool:
    """Engine thread only. Keys are content identities."""

    def __init__(self, tensors: AdapterPages) -> None:
        self.tensors = tensors
        self.slots = AdapterSlots(tensors.num_pages)
        self.loads = self.hits = self.misses = 0
        self.budget: int | None = 0  # bytes that may still be copied in this pass; None: any
        self._copies: deque[_Copy] = deque()
        self._retired: set[str] = set()

    @property
    def is_copying(self) -> bool:
        return bool(self._copies)

    def __contains__(self, key: str) -> bool:
        return key in self.slots

    def is_whole(self, key: str) -> bool:
        return key in self.slots and self.slots.is_ready(key)

    def versions(self, adapter_id: str) -> list[str]:
        """Keys of every version of the adapter in the pool."""
        return [key for key in self.slots.resident if adapter_id_of(key) == adapter_id]

    def num_pages(self, adapter_id: str) -> int:
        return sum(len(self.slots.pages(key)) for key in self.versions(adapter_id))

    def acquire(self, key: str) -> None:
        """Reference a whole version for one sequence."""
        if self.slots.acquire(key):
            self.misses += 1
        else:
            self.hits += 1

    def release(self, key: str) -> bool:
        """→ True when that has freed a retired version."""
        self.slots.release(key)
        return self._evict_if_retired(key)

    def add(self, adapter: Adapter, pinned: bool, wanted: bool) -> bool:
        """Start to copy a version in; False when pages in use leave too few."""
        pages = self.slots.reserve(adapter.key, adapter.num_pages, wanted)
        if pages is None:
            return False
        self.slots.pin(adapter.key, pinned)
        self._copies.append(_Copy(adapter, pages))
        return True

    def copy(self) -> list[str]:
        """Go on copying while the budget lasts → ids now whole. The last piece may exceed it."""
        whole: list[str] = []
        while self._copies and (self.budget is None or self.budget > 0):
            copy = self._copies[0]
            size = self.tensors.write_layer(copy.layer, copy.pages, copy.adapter)
            self.budget = None if self.budget is None else self.budget - size
            copy.layer += 1
            if copy.layer == self.tensors.num_layers:
                self._copies.popleft()
                self.slots.mark_ready(copy.adapter.key)
                self.loads += 1
                whole.append(copy.adapter.adapter_id)
        return whole

    def retire_all(self, adapter_id: str) -> None:
        for key in self.versions(adapter_id):
            self.retire(key)

    def pin(self, adapter_id: str, pinned: bool) -> None:
        for key in self.versions(adapter_id):
            self.slots.pin(key, pinned)

    def refusal(self, adapter: Adapter) -> RequestError | None:
        """Why the whole pool does not hold an adapter."""
        if adapter.num_pages <= self.slots.num_pages:
            return None
        return invalid(
            f"adapter {adapter.adapter_id!r}: needs {adapter.nbytes} bytes of adapter memory "
            f"but adapter_memory holds {self.tensors.nbytes}; raise --adapter-memory"
        )

    def give_up(self) -> str:
        """End the copy in progress, which cannot go on → its adapter id."""
        adapter = self._copies.popleft().adapter
        self._retired.discard(adapter.key)
        self.slots.evict(adapter.key)
        return adapter.adapter_id

    def want(self, key: str, wanted: bool) -> None:
        """See AdapterSlots.want; nothing happens to what is not in the pool."""
        if key in self.slots:
            self.slots.want(key, wanted)

    def retire(self, key: str) -> None:
        """No new sequence will use this version: free it now, or with its last reference."""
        if key in self.slots:
            self._retired.add(key)
            self._evict_if_retired(key)

    def revive(self, key: str) -> None:
        """A retired version is in use again."""
        self._retired.discard(key)

    def _evict_if_retired(self, key: str) -> bool:
        if key not in self._retired or self.slots.references(key):
            return False
        self._retired.discard(key)
        self._copies = deque(copy for copy in self._copies if copy.adapter.key != key)
        self.slots.evict(key)
        return True


def adapter_id_of(key: str) -> str:
    """See Adapter.key."""
    return key.rpartition("@")[0]
