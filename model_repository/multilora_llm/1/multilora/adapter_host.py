"""The host tier: checked adapters in host memory, the least recently used dropped over a budget.

A pinned adapter leaves after every other one. A fresh one (read for a request, but not yet copied
to the device) is not dropped for a while: two adapters whose requests wait must not push each other
out for ever.
"""

import time
from collections import OrderedDict

from multilora.adapter_checkpoint import Adapter

_FRESH_SECONDS = 5.0  # long enough to be copied, unless whoever waited has left


class AdapterHost:
    """`max_bytes` may be exceeded by fresh adapters and by one more. Engine thread only."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()  # least recently used first
        self._pinned: set[str] = set()
        self._fresh: dict[str, float] = {}  # adapter id → until when

    def __contains__(self, adapter_id: str) -> bool:
        return adapter_id in self._adapters

    @property
    def has_room(self) -> bool:
        """False while fresh adapters fill the budget: reading more would only pile them up."""
        now = time.monotonic()
        self._fresh = {name: until for name, until in self._fresh.items() if until > now}
        fresh_bytes = sum(self._adapters[name].nbytes for name in self._fresh)
        return not self._fresh or fresh_bytes < self.max_bytes

    def get(self, adapter_id: str) -> Adapter | None:
        adapter = self._adapters.get(adapter_id)
        if adapter is not None:
            self._adapters.move_to_end(adapter_id)
        return adapter

    def keep(self, adapter: Adapter, wanted: bool) -> None:
        """Take an adapter in, dropping others over the budget; `wanted`: by a request, so fresh."""
        self.drop(adapter.adapter_id)
        self._adapters[adapter.adapter_id] = adapter
        self.used_bytes += adapter.nbytes
        if wanted:
            self._fresh[adapter.adapter_id] = time.monotonic() + _FRESH_SECONDS
        self._shrink()

    def used(self, adapter_id: str) -> None:
        """The adapter has been copied to the device: it may be dropped."""
        if self._fresh.pop(adapter_id, None):
            self._shrink()

    def pin(self, adapter_id: str, pinned: bool) -> None:
        (self._pinned.add if pinned else self._pinned.discard)(adapter_id)

    def drop(self, adapter_id: str) -> int:
        """→ bytes given back."""
        adapter = self._adapters.pop(adapter_id, None)
        self._fresh.pop(adapter_id, None)
        freed = adapter.nbytes if adapter else 0
        self.used_bytes -= freed
        return freed

    def _shrink(self) -> None:
        for pinned in (False, True):
            for name in list(self._adapters):
                if self.used_bytes <= self.max_bytes or len(self._adapters) == 1:
                    return
                if (name in self._pinned) is pinned and name not in self._fresh:
                    self.drop(name)
