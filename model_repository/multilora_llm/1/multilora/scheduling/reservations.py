"""Who gets pages of a full adapter pool next, so that no adapter waits for room for ever.

An adapter that was refused for want of room for `patience` passes is starved and gets a claim.
While claims are open no other adapter may take pages, and of the adapters that run, those that will
be done soonest are closed to new sequences, only as many as the claims need: all others flow on.
Claims are opened together, for up to half of the pages in use, and served oldest first; new ones
wait until these are settled. So a claim is served after the longest closed sequence has ended, and
a starved adapter waits for the claims before it, not for luck. Adapters that are being read take no
part, and the base model needs no pages.
"""

from collections.abc import Iterable

from multilora.errors import RequestError
from multilora.scheduling.adapter_cache import AdapterGate, NotReady
from multilora.scheduling.sequence import Sequence


class AdapterClaims:
    """`begin` opens a pass; `admits` comes before the gate, its answer after."""

    def __init__(self, gate: AdapterGate, patience: int) -> None:
        self._gate = gate
        self._patience = patience
        self._pass = 0
        self._refused: dict[str, int] = {}  # adapter id → pass of the first refusal, oldest first
        self.open: list[str] = []  # adapter ids, oldest refusal first
        self._closed: set[str] = set()

    def begin(self, running: Iterable[Sequence]) -> None:
        """Serve the open claims as far as pages have fallen idle, and see to it that more do."""
        self._pass += 1
        if not self.open:
            self._closed.clear()
            self._open_claims(running)
        short = self._take_pages()
        if short:
            self._close(running, short)
        else:
            self._closed.clear()

    def admits(self, sequence: Sequence) -> bool:
        """May it start now, as far as the claims are concerned? A preempted one ends a drain."""
        if not self.open:
            return True
        adapter_id = sequence.request.adapter_id
        if adapter_id in self._closed and not sequence.admitted:
            return False
        return self._gate.is_resident(adapter_id)

    def refuse(self, adapter_id: str) -> None:
        """The adapter found no room, or was held back for a claim: it grows older."""
        self._refused.setdefault(adapter_id, self._pass)

    def wait_for_load(self, adapter_id: str) -> None:
        """The adapter is being read, which is nobody's turn, or copied to pages it has."""
        self._refused.pop(adapter_id, None)
        if adapter_id in self.open and not self._gate.is_resident(adapter_id):
            self.open.remove(adapter_id)

    def settle(self, adapter_id: str) -> None:
        """A sequence of the adapter has started, it failed, or nobody waits for it any more."""
        self._refused.pop(adapter_id, None)
        if adapter_id in self.open:
            self.open.remove(adapter_id)

    def _open_claims(self, running: Iterable[Sequence]) -> None:
        starved: list[str] = []
        for adapter_id, since in self._refused.items():
            if self._pass - since < self._patience:
                break
            starved.append(adapter_id)
        if not starved:
            return
        keys = {sequence.adapter_key for sequence in running} - {""}
        room = sum(len(self._gate.pages(key)) for key in keys) // 2
        for adapter_id in starved:
            if self._gate.is_resident(adapter_id):
                self._refused.pop(adapter_id)
                continue
            room -= self._gate.shortage(adapter_id)
            if room < 0 and self.open:
                return
            self.open.append(adapter_id)

    def _take_pages(self) -> int:
        """Let the claims take idle pages, oldest first → pages in use that the rest needs."""
        for adapter_id in list(self.open):
            if self._gate.is_resident(adapter_id):
                continue  # stays open until a sequence holds the pages, or another would take them
            try:
                ready = self._gate.acquire(adapter_id)
            except RequestError:
                self.settle(adapter_id)  # whoever asks for its sequences hears of it
                continue
            if ready is NotReady.NO_ROOM:
                break
            if ready is NotReady.LOADING:
                self.wait_for_load(adapter_id)
            else:
                self._gate.release(ready)
        return sum(self._gate.shortage(name) for name in self.open)

    def _close(self, running: Iterable[Sequence], short: int) -> None:
        """Close the adapters that will be done soonest, until `short` pages are on their way."""
        names: dict[str, str] = {}
        to_come: dict[str, int] = {}
        for sequence in running:
            key = sequence.adapter_key
            names[key] = sequence.request.adapter_id
            to_come[key] = max(to_come.get(key, 0), sequence.num_tokens_to_come)
        to_come.pop("", None)
        for key in sorted(to_come, key=lambda key: (to_come[key], key)):
            if short <= 0:
                return
            if names[key] not in self.open:  # else an old version: nobody joins it
                self._closed.add(names[key])
            short -= len(self._gate.pages(key))
