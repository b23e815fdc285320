"""The device tier: the adapter versions in the pool of rank pages, ready or still being copied.

RankPageAllocator decides which version has which pages, RankPagePool holds the tensors. Copies are
made in pieces of one layer of one adapter, the oldest copy first, up to a number of bytes a pass,
so that running streams keep their pace. A retired version gives its pages back with its last
reference.
"""

from collections import deque
from dataclasses import dataclass

from multilora.adapters.checkpoint.adapter import Adapter
from multilora.adapters.memory.page_allocator import RankPageAllocator
from multilora.adapters.naming.source import named_error
from multilora.errors import RequestError, invalid
from multilora.lora.rank_pages import RankPagePool


@dataclass
class _Copy:
    adapter: Adapter
    pages: tuple[int, ...]
    layer: int = 0  # the next one to copy


class DeviceAdapterCache:
    """Engine thread only. Keys are content identities of versions."""

    def __init__(self, tensors: RankPagePool) -> None:
        self.tensors = tensors
        self.allocator = RankPageAllocator(tensors.num_pages)
        self.loads = self.hits = self.misses = 0
        self.budget: int | None = 0  # bytes that may still be copied in this pass; None: any
        self._copies: deque[_Copy] = deque()
        self._retired: set[str] = set()

    @property
    def is_copying(self) -> bool:
        return bool(self._copies)

    def __contains__(self, key: str) -> bool:
        return key in self.allocator

    def is_ready(self, key: str) -> bool:
        """Whether the version has been copied in whole."""
        return key in self.allocator and self.allocator.is_ready(key)

    def versions(self, adapter_id: str) -> list[str]:
        """Keys of every resident version of the adapter."""
        return [key for key in self.allocator.resident if adapter_id_of(key) == adapter_id]

    def num_pages(self, adapter_id: str) -> int:
        return sum(len(self.allocator.pages(key)) for key in self.versions(adapter_id))

    def acquire(self, key: str) -> None:
        """Reference a version that is ready for one sequence."""
        if self.allocator.acquire(key):
            self.misses += 1
        else:
            self.hits += 1

    def release(self, key: str) -> bool:
        """→ True when this has freed a retired version."""
        self.allocator.release(key)
        return self._evict_if_retired(key)

    def add(self, adapter: Adapter, pinned: bool, wanted: bool) -> bool:
        """Start to copy a version in; False when pages in use leave too few."""
        pages = self.allocator.reserve(adapter.key, adapter.num_pages, wanted)
        if pages is None:
            return False
        self.allocator.pin(adapter.key, pinned)
        self._copies.append(_Copy(adapter, pages))
        return True

    def copy(self) -> list[str]:
        """Go on copying while the budget lasts → ids of the adapters that are ready now.

        The last piece may exceed the budget.
        """
        ready: list[str] = []
        while self._copies and (self.budget is None or self.budget > 0):
            copy = self._copies[0]
            size = self.tensors.write_layer(copy.layer, copy.pages, copy.adapter.weights)
            self.budget = None if self.budget is None else self.budget - size
            copy.layer += 1
            if copy.layer == self.tensors.num_layers:
                self._copies.popleft()
                self.allocator.mark_ready(copy.adapter.key)
                self.loads += 1
                ready.append(copy.adapter.adapter_id)
        return ready

    def abandon_copy(self) -> str:
        """End the copy in progress, which has failed → its adapter id."""
        adapter = self._copies.popleft().adapter
        self._retired.discard(adapter.key)
        self.allocator.evict(adapter.key)
        return adapter.adapter_id

    def pin(self, adapter_id: str, pinned: bool) -> None:
        for key in self.versions(adapter_id):
            self.allocator.pin(key, pinned)

    def want(self, key: str, wanted: bool) -> None:
        """As RankPageAllocator.want; a version that is not resident is passed over."""
        if key in self.allocator:
            self.allocator.want(key, wanted)

    def refusal(self, adapter: Adapter) -> RequestError | None:
        """Why not even the empty pool would hold an adapter, if so."""
        if adapter.num_pages <= self.allocator.num_pages:
            return None
        error = invalid(
            f"needs {adapter.nbytes} bytes of adapter memory but adapter_memory holds "
            f"{self.tensors.nbytes}; raise --adapter-memory"
        )
        return named_error(adapter.adapter_id, error)

    def retire_all(self, adapter_id: str) -> None:
        for key in self.versions(adapter_id):
            self.retire(key)

    def retire(self, key: str) -> None:
        """No new sequence will use this version: free it now, or with its last reference."""
        if key in self.allocator:
            self._retired.add(key)
            self._evict_if_retired(key)

    def revive(self, key: str) -> None:
        """New sequences use a retired version again."""
        self._retired.discard(key)

    def _evict_if_retired(self, key: str) -> bool:
        if key not in self._retired or self.allocator.references(key):
            return False
        self._retired.discard(key)
        self._copies = deque(copy for copy in self._copies if copy.adapter.key != key)
        self.allocator.evict(key)
        return True


def adapter_id_of(key: str) -> str:
    """The adapter of a version; see Adapter.key."""
    return key.rpartition("@")[0]
