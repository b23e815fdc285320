"""What is known of one adapter id while the server runs: version in use, failure, pin, history."""

import logging
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from enum import Enum

from multilora.adapters.checkpoint.adapter import AdapterFacts
from multilora.adapters.checkpoint.text import NO_TEXT, AdapterText
from multilora.adapters.naming.source import AdapterSource
from multilora.errors import ErrorCode, RequestError
from multilora.metrics import AdapterUsage
from multilora_api.admin import Origin

_LOG = logging.getLogger(__name__)
RETRY_SECONDS = 30.0  # until a request makes the server read a failed adapter again
_MANY = 10_000  # states, from which on the unused ones are forgotten
Done = Callable[[RequestError | None], None]


class LoadState(Enum):
    """Whether the adapter's files are being read. In which tier the version in use stands is
    another question, which AdapterManager.tier answers."""

    READY = "ready"  # nothing is under way: the adapter is in memory, or is read when needed
    LOADING = "loading"
    FAILED = "failed"


@dataclass(eq=False)
class AdapterState:
    """Owned by the engine thread, filled by AdapterManager.

    `key` is the content identity of the version that new sequences use ("" = not read yet).
    `pending` is the source that is being read. `ticket` counts the loads that were asked for: the
    result of an older load is dropped. The `load_waiters` are told how the load in progress ends,
    the `unload_waiters` when the last page has been given back.
    """

    source: AdapterSource
    load_state: LoadState = LoadState.READY
    key: str = ""
    facts: AdapterFacts | None = None
    text: AdapterText = NO_TEXT
    error: RequestError | None = None
    failed: AdapterSource | None = None  # the source of the error while the load state is FAILED
    retry_at: float = 0.0  # time.monotonic() before which a failed adapter is not read again
    pinned: bool = False
    pending: AdapterSource | None = None
    wanted: bool = False  # a request waits for the adapter
    files_changed: bool = False  # while they were being read
    ticket: int = 0
    usage: AdapterUsage = field(default_factory=AdapterUsage)
    last_used: float | None = None  # time.monotonic()
    load_waiters: list[Done] = field(default_factory=list)
    unload_waiters: list[Done] = field(default_factory=list)

    @property
    def adapter_id(self) -> str:
        return self.source.adapter_id

    @property
    def is_known(self) -> bool:
        """False when there is nothing to tell but the name, or that a name which a request has
        brought up, and nobody else, is not that of an adapter."""
        named = self.source.origin is not Origin.ON_DEMAND
        return bool(self.key or (self.error and named) or self.pending or self.unload_waiters)

    @property
    def recent_failure(self) -> RequestError | None:
        """The error of a failed adapter that is not to be read again yet.

        The failure of a load from another source, which an administrator tried, does not count.
        """
        recent = time.monotonic() < self.retry_at and self.failed == self.source
        return self.error if recent and self.load_state is LoadState.FAILED else None

    def fail(self, error: RequestError, source: AdapterSource) -> None:
        """Note that there is no version that sequences could use."""
        self.load_state, self.error, self.failed = LoadState.FAILED, error, source
        self.retry_at = time.monotonic() + RETRY_SECONDS
        if error.code is not ErrorCode.NOT_FOUND:  # mistyped names of requests do not fill the log
            _LOG.warning("%s", error.message)

    def forget_version(self) -> None:
        """Forget all that was read; the result of a load in progress will be dropped."""
        self.ticket += 1
        self.load_state, self.pending = LoadState.READY, None
        self.key, self.facts, self.error = "", None, None
        message = f"adapter {self.adapter_id!r} has been unloaded meanwhile; load it again"
        self.end_load(RequestError(ErrorCode.UNAVAILABLE, message))

    def used_again(self) -> RequestError:
        """Why an unload has not freed everything."""
        return RequestError(
            ErrorCode.UNAVAILABLE,
            f"adapter {self.adapter_id!r} was unloaded, but requests load it again as its source "
            "still allows; remove the folder or the --adapter-allow pattern first",
        )

    def end_load(self, error: RequestError | None) -> None:
        """Answer those who wait for a load."""
        waiters, self.load_waiters = self.load_waiters, []
        for done in waiters:
            done(error)

    def end_unload(self, error: RequestError | None) -> None:
        """Answer those who wait for the pages to be given back."""
        waiters, self.unload_waiters = self.unload_waiters, []
        for done in waiters:
            done(error)


class AdapterStates(dict[str, AdapterState]):
    """The states of all adapters that somebody has named, by adapter id, bounded in number.

    The engine thread alone changes the dict; other threads may look up a state.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sweep_at = _MANY

    def usage(self, adapter_id: str) -> AdapterUsage | None:
        """The requests and tokens of an adapter that somebody has named."""
        state = self.get(adapter_id)
        return state.usage if state else None

    def forget(self, keep: Callable[[], Container[str]]) -> None:
        """Once there are many states, drop those that hold nothing but a history.

        `keep` names the adapters that are in a tier or a queue. The cost is O(1) for each state
        made since the last call.
        """
        if len(self) < self._sweep_at:
            return
        kept = keep()
        for adapter_id, state in list(self.items()):
            if not (state.pending or state.pinned or adapter_id in kept):
                del self[adapter_id]
        self._sweep_at = max(_MANY, 2 * len(self))
