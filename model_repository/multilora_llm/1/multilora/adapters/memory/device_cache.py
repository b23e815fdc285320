"""The device tier: the adapter versions in the pool of rank pages, ready or still being copied.

RankPageAllocator decides which version has which pages, RankPagePool holds the tensors. A thread
beside the engine's copies, the oldest first, so that running streams keep their pace. A retired
version gives its pages back with its last reference, or when its copy ends.
"""

import contextlib
import queue
from collections.abc import Callable
from typing import Any, NamedTuple

from multilora.adapters.background_thread import background_thread
from multilora.adapters.checkpoint.adapter import Adapter
from multilora.adapters.memory.page_allocator import RankPageAllocator
from multilora.adapters.naming.source import named_error
from multilora.errors import RequestError, invalid
from multilora.lora.rank_pages import RankPagePool


class Copied(NamedTuple):
    """A copy that has ended, with an error if it failed."""

    adapter: Adapter
    error: Exception | None


class _Copy(NamedTuple):
    adapter: Adapter
    pages: tuple[int, ...]
    passes: Any  # what RankPagePool.launched told: they may still read the pages


class DeviceAdapterCache:
    """Engine thread only; `wake` stirs it when a copy has ended. Keys are content identities of
    versions."""

    def __init__(self, tensors: RankPagePool, wake: Callable[[], None]) -> None:
        self.tensors = tensors
        self.allocator = RankPageAllocator(tensors.num_pages)
        self.loads = self.hits = self.misses = 0
        self._wake = wake
        self._copies: queue.SimpleQueue[_Copy | None] = queue.SimpleQueue()
        self._copied: queue.SimpleQueue[Copied] = queue.SimpleQueue()
        self._num_copying = 0
        self._retired: set[str] = set()
        self._closed = False
        self._thread = background_thread("adapter-copier", self._loop)
        self._thread.start()

    @property
    def is_copying(self) -> bool:
        return self._num_copying > 0

    def close(self) -> None:
        """Stop after the copy in progress."""
        self._closed = True
        self._copies.put(None)
        self._thread.join(timeout=5)

    def __contains__(self, key: str) -> bool:
        return key in self.allocator

    def is_ready(self, key: str) -> bool:
        """Whether the version has been copied in whole."""
        return key in self.allocator and self.allocator.is_ready(key)

    def is_wanted(self, key: str) -> bool:
        """Whether it is kept for a sequence that waits for it, and is its first."""
        return key in self.allocator and self.allocator.is_wanted(key)

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
        self._num_copying += 1
        self._copies.put(_Copy(adapter, pages, self.tensors.launched()))
        return True

    def take_copied(self, wait: bool = False) -> list[Copied]:
        """The copies that have ended since the last call; `wait`: at least one."""
        ended: list[Copied] = []
        with contextlib.suppress(queue.Empty):
            while True:
                ended.append(self._copied.get(block=wait and not ended))
        for adapter, error in ended:
            self._num_copying -= 1
            self.allocator.mark_ready(adapter.key)
            self.loads += error is None
            if error:
                self._retired.add(adapter.key)
            self._evict_if_retired(adapter.key)
        return ended

    def _loop(self) -> None:
        while self._copy(self._copies.get()):
            self._wake()

    def _copy(self, copy: _Copy | None) -> bool:
        """On the copying thread, which keeps no adapter alive; False at the end."""
        if copy is None or self._closed:
            return False
        error = None
        try:
            self.tensors.write(copy.pages, copy.adapter.weights, copy.passes)
        except Exception as failure:
            error = failure
        self._copied.put(Copied(copy.adapter, error))
        return True

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
        if not self.allocator.is_ready(key):
            return False  # its pages are being written
        self._retired.discard(key)
        self.allocator.evict(key)
        return True


def adapter_id_of(key: str) -> str:
    """The adapter of a version; see Adapter.key."""
    return key.rpartition("@")[0]
