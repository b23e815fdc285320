"""Which adapters stand in the device pool, on which rank pages, and who may leave.

An adapter key is content identity (id and digest), so two versions of one adapter are two
entries. What running sequences reference never leaves, nor what is being copied, nor what was
copied a moment ago and not yet used: whoever waits for it must find it. Of the rest the least
recently used leaves first, pinned ones after all others. Pages are handed out lowest first: active
pages stay close together, which the CPU path of the kernels rewards.
"""

import heapq
from collections import OrderedDict
from dataclasses import dataclass

HOLD_SECONDS = 1.0  # how long a copied adapter is kept for whoever has asked for it


@dataclass
class _Entry:
    pages: tuple[int, ...]
    references: int = 0
    pinned: bool = False
    ready: bool = False  # copied
    held_until: float = 0.0  # 0 once it has been used
    used: bool = False


class AdapterSlots:
    """`num_pages` rank pages shared by any number of adapters of any rank."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.evictions = 0
        self.num_references = 0  # over all adapters
        self.now = 0.0  # seconds of any clock, set by the store in every pass
        self._free = list(range(num_pages))
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._held: set[str] = set()  # entries that had a hold and were not used since
        self._idle_pages = 0  # of ready entries without reference, held ones included

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def resident(self) -> list[str]:
        """Keys in the pool, least recently used first."""
        return list(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def pages(self, key: str) -> tuple[int, ...]:
        return self._entries[key].pages

    def references(self, key: str) -> int:
        return self._entries[key].references

    def is_ready(self, key: str) -> bool:
        """True when the pages hold the adapter: its copy has ended."""
        return self._entries[key].ready

    def reserve(self, key: str, count: int) -> tuple[int, ...] | None:
        """Give `key` `count` pages to be filled, evicting idle adapters if needed.

        None when pages in use leave too few: then nothing is evicted.
        """
        if key in self._entries:
            raise ValueError(f"adapter {key} already has pages")
        if self.shortage(count):
            return None
        for victim in self._victims(count - len(self._free)):
            self.evict(victim)
            self.evictions += 1
        pages = tuple(heapq.heappop(self._free) for _ in range(count))
        self._entries[key] = _Entry(pages)
        return pages

    def shortage(self, count: int) -> int:
        """How many of `count` pages neither are free nor can be freed now."""
        held = (self._entries[key] for key in self._held)
        kept = sum(len(entry.pages) for entry in held if entry.held_until > self.now)
        return max(0, count - len(self._free) - (self._idle_pages - kept))

    def mark_ready(self, key: str, wanted: bool = True) -> None:
        """The copy has ended; if somebody wants the adapter, it is held for that first use."""
        entry = self._entries[key]
        entry.ready = True
        self._idle_pages += len(entry.pages)
        if wanted:
            entry.held_until = self.now + HOLD_SECONDS
            self._held.add(key)

    def acquire(self, key: str) -> bool:
        """Reference `key` for one running sequence and mark it used → True for its first use."""
        entry = self._entries[key]
        if not entry.ready:
            raise ValueError(f"adapter {key} is still being copied")
        first, entry.used = not entry.used, True
        entry.held_until = 0.0
        self._held.discard(key)
        if not entry.references:
            self._idle_pages -= len(entry.pages)
        entry.references += 1
        self.num_references += 1
        self._entries.move_to_end(key)
        return first

    def end_hold(self, key: str) -> None:
        """Whoever waited for the adapter has left."""
        self._entries[key].held_until = 0.0
        self._held.discard(key)

    def release(self, key: str) -> None:
        entry = self._entries[key]
        if entry.references < 1:
            raise ValueError(f"adapter {key} released twice")
        entry.references -= 1
        self.num_references -= 1
        if not entry.references:
            self._idle_pages += len(entry.pages)

    def pin(self, key: str, pinned: bool = True) -> None:
        self._entries[key].pinned = pinned

    def evict(self, key: str) -> int:
        """Free the pages of an adapter that nobody references → how many."""
        entry = self._entries[key]
        if entry.references:
            raise ValueError(f"adapter {key} is in use by {entry.references} sequences")
        del self._entries[key]
        self._held.discard(key)
        if entry.ready:
            self._idle_pages -= len(entry.pages)
        for page in entry.pages:
            heapq.heappush(self._free, page)
        return len(entry.pages)

    def _is_idle(self, entry: _Entry) -> bool:
        return entry.ready and not entry.references and self.now >= entry.held_until

    def _victims(self, shortage: int) -> list[str]:
        victims: list[str] = []
        for pinned in (False, True):
            for key, entry in self._entries.items():
                if shortage <= 0:
                    return victims
                if entry.pinned is pinned and self._is_idle(entry):
                    victims.append(key)
                    shortage -= len(entry.pages)
        return victims
