"""The host tier: checked adapters in host memory; over a budget the least recently used go.

A pinned adapter is evicted after every other one. An adapter that requests wait for stays until it
has been copied to the device: two such adapters must not evict each other for ever.
"""

from collections import OrderedDict
from collections.abc import Iterator

from multilora.adapters.checkpoint.adapter import Adapter


class HostAdapterCache:
    """`max_bytes` may be exceeded by wanted adapters and by one more. Engine thread only."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()  # least recently used first
        self._pinned: set[str] = set()
        self._wanted: set[str] = set()  # requests wait for these, which are not on the device yet
        self._wanted_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters)

    def __contains__(self, adapter_id: str) -> bool:
        return adapter_id in self._adapters

    @property
    def has_room(self) -> bool:
        """False while wanted adapters fill the budget: reading more would only pile them up."""
        return not self._wanted or self._wanted_bytes < self.max_bytes

    def get(self, adapter_id: str) -> Adapter | None:
        """The adapter for a request: it is wanted from now on."""
        adapter = self._adapters.get(adapter_id)
        if adapter is not None:
            self._adapters.move_to_end(adapter_id)
            self._want(adapter)
        return adapter

    def put(self, adapter: Adapter, wanted: bool) -> None:
        """Take an adapter in and evict others over the budget; `wanted`: a request waits for it."""
        self.evict(adapter.adapter_id)
        self._adapters[adapter.adapter_id] = adapter
        self.used_bytes += adapter.host_bytes
        if wanted:
            self._want(adapter)
        self._shrink()

    def unwanted(self, adapter_id: str) -> None:
        """The adapter is on the device, or no request waits for it any more: it may be evicted."""
        if adapter_id in self._wanted:
            self._unwant(self._adapters[adapter_id])
            self._shrink()

    def pin(self, adapter_id: str, pinned: bool) -> None:
        (self._pinned.add if pinned else self._pinned.discard)(adapter_id)

    def evict(self, adapter_id: str) -> int:
        """→ bytes given back."""
        adapter = self._adapters.pop(adapter_id, None)
        if adapter is None:
            return 0
        self._unwant(adapter)
        self.used_bytes -= adapter.host_bytes
        return adapter.host_bytes

    def _want(self, adapter: Adapter) -> None:
        if adapter.adapter_id not in self._wanted:
            self._wanted.add(adapter.adapter_id)
            self._wanted_bytes += adapter.host_bytes

    def _unwant(self, adapter: Adapter) -> None:
        if adapter.adapter_id in self._wanted:
            self._wanted.remove(adapter.adapter_id)
            self._wanted_bytes -= adapter.host_bytes

    def _shrink(self) -> None:
        for pinned in (False, True):
            for name in list(self._adapters):
                if self.used_bytes <= self.max_bytes or len(self._adapters) == 1:
                    return
                if (name in self._pinned) is pinned and name not in self._wanted:
                    self.evict(name)
