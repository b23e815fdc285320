"""Adapters in two tiers: checked checkpoints in host memory, rank pages in the device pool.

Host memory keeps the most recently used adapters up to a number of bytes and may drop any of them:
the loader brings it back. The device pool is AdapterSlots (who is where) and AdapterPages (the
tensors). Nothing here waits: `acquire` answers for this pass. Engine thread only, but for `knows`.
"""

import queue
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from multilora.adapter_checkpoint import Adapter
from multilora.adapter_gate import NotReady
from multilora.adapter_loader import AdapterLoader
from multilora.adapter_pages import AdapterPages
from multilora.adapter_slots import AdapterSlots
from multilora.adapter_source import AdapterSource
from multilora.errors import RequestError, StartupError, invalid

RETRY_SECONDS = 10.0  # a failed adapter is not read again sooner


class AdapterStore:
    """Implements the scheduler's AdapterGate. `host_bytes` bounds the host tier."""

    def __init__(
        self,
        sources: Iterable[AdapterSource],
        read: Callable[[AdapterSource], Adapter],
        pool: AdapterPages,
        host_bytes: int,
        wake: Callable[[], None],
    ) -> None:
        self.pool = pool
        self.slots = AdapterSlots(pool.num_pages)
        self.loads = 0
        self._sources = {source.adapter_id: source for source in sources}
        self._read = read
        self._loader = AdapterLoader(read, wake)
        self._loading: set[str] = set()
        self._failed: dict[str, tuple[RequestError, float]] = {}  # until when
        self._keys: dict[str, str] = {}  # adapter_id → key of the version in use
        self._host: OrderedDict[str, Adapter] = OrderedDict()  # least recently used first
        self._host_used = 0
        self._host_bytes = host_bytes

    @property
    def adapter_ids(self) -> list[str]:
        return list(self._sources)

    def knows(self, adapter_id: str) -> bool:
        return adapter_id in self._sources

    def warm_up(self, progress: Callable[[str], None]) -> None:
        """Read every registered adapter, and fill the pool while it has room.

        Raises StartupError for the first one that cannot be used.
        """
        for source in self._sources.values():
            progress(source.adapter_id)
            try:
                adapter = self._read(source)
                self._keep(adapter)
            except RequestError as error:
                raise StartupError(error.message) from None
            if adapter.num_pages <= self.slots.num_free:
                self._fill(adapter)

    def collect(self) -> None:
        """Take what the loader has finished since the last call."""
        while True:
            try:
                source, adapter, error = self._loader.results.get_nowait()
            except queue.Empty:
                return
            self._loading.discard(source.adapter_id)
            try:
                if error:
                    raise error
                assert adapter is not None
                self._keep(adapter)
            except RequestError as failure:
                self._failed[source.adapter_id] = (failure, time.monotonic() + RETRY_SECONDS)

    def acquire(self, adapter_id: str) -> str | NotReady:
        key = self._keys.get(adapter_id, "")
        adapter = self._host.get(adapter_id)
        if adapter is not None:
            self._host.move_to_end(adapter_id)
        if key not in self.slots:
            if adapter is None:
                return self._ask_loader(adapter_id)
            if not self._fill(adapter):
                return NotReady.NO_ROOM
            key = adapter.key
        self.slots.acquire(key)
        return key

    def release(self, adapter_key: str) -> None:
        self.slots.release(adapter_key)

    def pages(self, adapter_key: str) -> tuple[int, ...]:
        return self.slots.pages(adapter_key)

    def close(self) -> None:
        self._loader.close()

    def _ask_loader(self, adapter_id: str) -> NotReady:
        error, until = self._failed.get(adapter_id, (None, 0.0))
        if error and time.monotonic() < until:
            raise error
        self._failed.pop(adapter_id, None)
        if adapter_id not in self._loading:
            self._loading.add(adapter_id)
            self._loader.request(self._sources[adapter_id])
        return NotReady.LOADING

    def _keep(self, adapter: Adapter) -> None:
        """Put a freshly read adapter into the host tier, dropping others over the budget."""
        if adapter.num_pages > self.slots.num_pages:
            raise invalid(
                f"adapter {adapter.adapter_id!r}: needs {adapter.nbytes} bytes of adapter memory "
                f"but adapter_memory holds {self.pool.nbytes}; raise --adapter-memory"
            )
        replaced = self._host.pop(adapter.adapter_id, None)
        self._host_used += adapter.nbytes - (replaced.nbytes if replaced else 0)
        self._host[adapter.adapter_id] = adapter
        self._keys[adapter.adapter_id] = adapter.key
        while self._host_used > self._host_bytes and len(self._host) > 1:
            _, dropped = self._host.popitem(last=False)
            self._host_used -= dropped.nbytes

    def _fill(self, adapter: Adapter) -> bool:
        pages = self.slots.reserve(adapter.key, adapter.num_pages)
        if pages is None:
            return False
        self.pool.write(pages, adapter)
        self.loads += 1
        return True
