"""Which adapters stand in the device pool, on which rank pages, and who may leave.

An adapter key is content identity (id and digest), so two versions of one adapter are two
entries. A referenced (in use by running sequences) or pinned entry never leaves. Pages are handed
out lowest first: active pages stay close together, which the CPU path of the kernels rewards.
"""

import heapq
from collections import OrderedDict
from dataclasses import dataclass


@dataclass
class _Entry:
    pages: tuple[int, ...]
    references: int = 0
    pinned: bool = False


class AdapterSlots:
    """`num_pages` rank pages shared by any number of adapters of any rank."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.evictions = 0
        self.num_references = 0  # over all adapters
        self._free = list(range(num_pages))
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def resident(self) -> list[str]:
        """Keys in the pool, least recently used first."""
        return list(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def pages(self, key: str) -> tuple[int, ...]:
        return self._entries[key].pages

    def reserve(self, key: str, count: int) -> tuple[int, ...] | None:
        """Give `key` `count` pages, evicting idle adapters if needed.

        None when pages in use leave too few: then nothing is evicted.
        """
        if key in self._entries:
            raise ValueError(f"adapter {key} already has pages")
        victims = self._victims(count - len(self._free))
        if victims is None:
            return None
        for victim in victims:
            self.evict(victim)
            self.evictions += 1
        pages = tuple(heapq.heappop(self._free) for _ in range(count))
        self._entries[key] = _Entry(pages)
        return pages

    def acquire(self, key: str) -> None:
        """Reference `key` for one running sequence and mark it used."""
        self._entries[key].references += 1
        self.num_references += 1
        self._entries.move_to_end(key)

    def release(self, key: str) -> None:
        entry = self._entries[key]
        if entry.references < 1:
            raise ValueError(f"adapter {key} released twice")
        entry.references -= 1
        self.num_references -= 1

    def pin(self, key: str, pinned: bool = True) -> None:
        self._entries[key].pinned = pinned

    def evict(self, key: str) -> None:
        """Free the pages of an adapter that nobody references."""
        entry = self._entries[key]
        if entry.references:
            raise ValueError(f"adapter {key} is in use by {entry.references} sequences")
        del self._entries[key]
        for page in entry.pages:
            heapq.heappush(self._free, page)

    def _victims(self, shortage: int) -> list[str] | None:
        victims: list[str] = []
        for key, entry in self._entries.items():
            if shortage <= 0:
                break
            if not entry.references and not entry.pinned:
                victims.append(key)
                shortage -= len(entry.pages)
        return victims if shortage <= 0 else None
