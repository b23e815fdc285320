"""PageReservations: who gets pages of a full device pool next, so that no adapter waits for ever.

An adapter that was refused for want of room for `patience` passes is starved and gets a
reservation. While reservations are open no other adapter may take pages. Of the adapters that run,
those that will be done soonest are closed to new sequences, only as many as the reservations need;
all others flow on. Reservations are opened together, for up to half of the pages in use, and served
oldest first; new ones wait until these are settled. So a reservation is served after the longest
closed sequence has ended, and a starved adapter waits for the reservations before it, not for luck.
Adapters that are being read take no part, and the base model needs no pages.
"""

from collections.abc import Iterable

from multilora.errors import RequestError
from multilora.request import BASE_ONLY, AdapterSet
from multilora.scheduling.adapter_cache import AdapterCache, CacheMiss
from multilora.scheduling.sequence import Sequence


class PageReservations:
    """`begin` opens a pass; `admits` comes before the cache is asked, its answer after."""

    def __init__(self, cache: AdapterCache, patience: int) -> None:
        self._cache = cache
        self._patience = patience
        self._pass = 0
        self._refused: dict[AdapterSet, int] = {}  # → pass of the first refusal, oldest first
        self.open: list[AdapterSet] = []  # oldest refusal first
        self._closed: set[AdapterSet] = set()

    def begin(self, running: Iterable[Sequence]) -> None:
        """Serve the reservations as far as pages have fallen idle, and see to it that more do."""
        self._pass += 1
        if not self.open:
            self._closed.clear()
            self._reserve(running)
        short = self._take_pages()
        if short:
            self._close(running, short)
        else:
            self._closed.clear()

    def admits(self, sequence: Sequence) -> bool:
        """Whether it may start. Closed adapters admit those alone without which their pages would
        never be free: preempted sequences, and the first of a version."""
        if not self.open:
            return True
        adapters = sequence.request.adapters
        if adapters in self._closed and not sequence.admitted:
            # Nobody else gets the pages of a version that came since, before it has been used.
            return self._cache.is_kept(adapters)
        return self._cache.is_resident(adapters)

    def refuse(self, adapters: AdapterSet) -> None:
        """The adapters found no room, or were held back; their age begins with the first time."""
        self._refused.setdefault(adapters, self._pass)

    def wait_for_load(self, adapters: AdapterSet) -> None:
        """The adapters are being read, or copied to pages they have: no reservation is needed."""
        self._refused.pop(adapters, None)
        if adapters in self.open and not self._cache.is_resident(adapters):
            self.open.remove(adapters)

    def settle(self, adapters: AdapterSet) -> None:
        """A sequence of the adapters has started, loading failed, or no sequence waits any more."""
        self._refused.pop(adapters, None)
        if adapters in self.open:
            self.open.remove(adapters)

    def _reserve(self, running: Iterable[Sequence]) -> None:
        starved: list[AdapterSet] = []
        for adapters, since in self._refused.items():
            if self._pass - since < self._patience:
                break
            starved.append(adapters)
        if not starved:
            return
        keys = {sequence.adapters for sequence in running} - {BASE_ONLY}
        room = sum(len(self._cache.pages(key)) for key in keys) // 2
        for adapters in starved:
            if self._cache.is_resident(adapters):
                self._refused.pop(adapters)
                continue
            room -= self._cache.shortage(adapters)
            if room < 0 and self.open:
                return
            self.open.append(adapters)

    def _take_pages(self) -> int:
        """Let the reservations take idle pages, oldest first → pages in use that the rest needs."""
        for adapters in list(self.open):
            if self._cache.is_resident(adapters):
                continue  # open until a sequence holds the pages: another would take them
            try:
                found = self._cache.acquire(adapters)
            except RequestError:
                self.settle(adapters)  # its sequences hear of the error when they are asked for
                continue
            if found is CacheMiss.NO_ROOM:
                break
            if found is CacheMiss.LOADING:
                self.wait_for_load(adapters)
            elif isinstance(found, AdapterSet):
                self._cache.release(found)
        return sum(self._cache.shortage(adapters) for adapters in self.open)

    def _close(self, running: Iterable[Sequence], short: int) -> None:
        """Close the adapters that will be done soonest, until `short` pages are on their way."""
        by_id: dict[AdapterSet, AdapterSet] = {}
        to_come: dict[AdapterSet, int] = {}
        for sequence in running:
            key = sequence.adapters
            by_id[key] = sequence.request.adapters
            to_come[key] = max(to_come.get(key, 0), sequence.num_tokens_to_come)
        to_come.pop(BASE_ONLY, None)
        for key in sorted(to_come, key=lambda key: (to_come[key], key)):
            if short <= 0:
                return
            if by_id[key] not in self.open:  # else an old version, which no sequence joins
                self._closed.add(by_id[key])
            short -= len(self._cache.pages(key))
