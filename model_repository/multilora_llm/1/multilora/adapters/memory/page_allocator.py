"""Which adapters are resident in the device pool, on which rank pages, and which may be evicted.

An adapter key is content identity (id and digest), so two versions of one adapter are two entries.
Three kinds of entries are never evicted: those that running sequences reference, those that are
being copied, and those that a sequence waits for and has not used yet, which must be there when its
turn comes. Of the rest the least recently used is evicted first, pinned ones after all others.
Pages are handed out lowest first: active pages stay close together, which the CPU path of the
kernels rewards.
"""

import contextlib
import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class _Entry:
    pages: tuple[int, ...]
    references: int = 0
    pinned: bool = False
    ready: bool = False  # its copy has ended
    wanted: bool = False  # a sequence waits for it
    used: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether it may be evicted."""
        return self.ready and not self.references and not self.wanted


class RankPageAllocator:
    """`num_pages` rank pages shared by any number of adapters of any rank."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.evictions = 0
        self.num_references = 0  # over all adapters
        self._free = list(range(num_pages))
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._idle_pages = 0  # of the entries that are idle

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def resident(self) -> list[str]:
        """Keys of the entries, least recently used first."""
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

    def is_wanted(self, key: str) -> bool:
        """Whether a sequence waits for the adapter, which has not been used yet."""
        return self._entries[key].wanted

    def reserve(self, key: str, count: int, wanted: bool = False) -> tuple[int, ...] | None:
        """Give `key` `count` pages to be filled, evicting idle adapters if needed.

        `wanted`: a sequence waits for the adapter, which stays until its first use. None when the
        pages in use leave too few: then nothing is evicted.
        """
        if key in self._entries:
            raise ValueError(f"adapter {key} already has pages")
        if self.shortage(count):
            return None
        for victim in self._victims(count - len(self._free)):
            self.evict(victim)
            self.evictions += 1
        pages = tuple(heapq.heappop(self._free) for _ in range(count))
        self._entries[key] = _Entry(pages, wanted=wanted)
        return pages

    def shortage(self, count: int) -> int:
        """How many of `count` pages neither are free nor can be freed now."""
        return max(0, count - len(self._free) - self._idle_pages)

    def mark_ready(self, key: str) -> None:
        """The adapter's copy has ended."""
        with self._counted(key) as entry:
            entry.ready = True

    def want(self, key: str, wanted: bool) -> None:
        """A sequence waits for an adapter that has not been used yet, or none does any more."""
        with self._counted(key) as entry:
            entry.wanted = wanted and not entry.used

    def acquire(self, key: str) -> bool:
        """Reference `key` for one running sequence → True for the first use of the entry."""
        if not self.is_ready(key):
            raise ValueError(f"adapter {key} is still being copied")
        with self._counted(key) as entry:
            first, entry.used = not entry.used, True
            entry.wanted = False
            entry.references += 1
        self.num_references += 1
        self._entries.move_to_end(key)
        return first

    def release(self, key: str) -> None:
        with self._counted(key) as entry:
            if entry.references < 1:
                raise ValueError(f"adapter {key} released twice")
            entry.references -= 1
        self.num_references -= 1

    def pin(self, key: str, pinned: bool = True) -> None:
        self._entries[key].pinned = pinned

    def evict(self, key: str) -> int:
        """Free the pages of an adapter that nobody references → how many."""
        entry = self._entries[key]
        if entry.references:
            raise ValueError(f"adapter {key} is in use by {entry.references} sequences")
        self._idle_pages -= len(entry.pages) * entry.is_idle
        del self._entries[key]
        for page in entry.pages:
            heapq.heappush(self._free, page)
        return len(entry.pages)

    @contextlib.contextmanager
    def _counted(self, key: str) -> Iterator[_Entry]:
        """An entry that the caller changes; `_idle_pages` is adjusted afterwards."""
        entry = self._entries[key]
        before = entry.is_idle
        yield entry
        self._idle_pages += len(entry.pages) * (entry.is_idle - before)

    def _victims(self, shortage: int) -> list[str]:
        victims: list[str] = []
        for pinned in (False, True):
            for key, entry in self._entries.items():
                if shortage <= 0:
                    return victims
                if entry.pinned is pinned and entry.is_idle:
                    victims.append(key)
                    shortage -= len(entry.pages)
        return victims
