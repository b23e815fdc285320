"""What is known of one adapter id while the server runs: version in use, failure, pin, history."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from multilora.adapters.checkpoint.adapter import AdapterFacts
from multilora.adapters.naming.source import AdapterSource
from multilora.errors import ErrorCode, RequestError

_LOG = logging.getLogger(__name__)
RETRY_SECONDS = 30.0  # until a failed adapter is read again, unless somebody asks for it
Done = Callable[[RequestError | None], None]


class LoadState(Enum):
    """Of the reading; in which tier the version in use stands is another question."""

    READY = "ready"  # nothing is going on: in memory, or read when it is needed
    LOADING = "loading"
    FAILED = "failed"


@dataclass(eq=False)
class AdapterRecord:
    """Owned by the engine thread, filled by AdapterStore.

    `key` is the content identity of the version that new sequences use ("" = not read yet).
    `pending` is the source being read. `ticket` counts the loads asked for: the answer to an older
    one is dropped. `waiters` are told how the load in progress ends, `leaving` when the last page
    has been given back.
    """

    source: AdapterSource
    state: LoadState = LoadState.READY
    key: str = ""
    facts: AdapterFacts | None = None
    chat_template: Any = None  # as the text layer compiled it; None: the base model's
    error: RequestError | None = None
    failed: AdapterSource | None = None  # where the error comes from, in the state FAILED
    retry_at: float = 0.0  # time.monotonic() before which a failed adapter is not read again
    pinned: bool = False
    pending: AdapterSource | None = None
    wanted: bool = False  # by a request that waits
    changed: bool = False  # the files changed while they were being read
    ticket: int = 0
    requests: int = 0
    tokens: int = 0  # generated
    last_used: float | None = None  # seconds since 1970
    waiters: list[Done] = field(default_factory=list)
    leaving: list[Done] = field(default_factory=list)

    @property
    def adapter_id(self) -> str:
        return self.source.adapter_id

    @property
    def is_known(self) -> bool:
        """False when there is nothing to tell but the name."""
        return bool(self.key or self.error or self.pending or self.leaving)

    @property
    def recent_failure(self) -> RequestError | None:
        """The error of a failed adapter that is not to be read again yet. That an administrator
        tried another source in vain is no failure of this one."""
        recent = time.monotonic() < self.retry_at and self.failed == self.source
        return self.error if recent and self.state is LoadState.FAILED else None

    def fail(self, error: RequestError, source: AdapterSource) -> None:
        """There is no version that could be used."""
        self.state, self.error, self.failed = LoadState.FAILED, error, source
        self.retry_at = time.monotonic() + RETRY_SECONDS
        if error.code is not ErrorCode.NOT_FOUND:  # names that anybody may think of
            _LOG.warning("%s", error.message)

    def forget_version(self) -> None:
        """Nothing that was read counts any more; a load in progress comes to nothing."""
        self.ticket += 1
        self.state, self.pending = LoadState.READY, None
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
        waiters, self.waiters = self.waiters, []
        for done in waiters:
            done(error)

    def end_unload(self, error: RequestError | None) -> None:
        """Answer those who wait for the pages to be given back."""
        leaving, self.leaving = self.leaving, []
        for done in leaving:
            done(error)

    def entry(self, tier: str, running: int, waiting: int) -> dict[str, Any]:
        """The record as administrators see it (JSON)."""
        facts = self.facts
        return {
            "id": self.adapter_id,
            "source": self.source.location,
            "revision": self.source.revision,
            "origin": self.source.origin.value,
            "digest": facts.digest if facts else None,
            "rank": facts.rank if facts else None,
            "modules": list(facts.modules) if facts else None,
            "bytes": facts.nbytes if facts else None,
            "pages": facts.num_pages if facts else None,
            "tier": tier,
            "pinned": self.pinned,
            "running": running,
            "waiting": waiting,
            "requests": self.requests,
            "tokens": self.tokens,
            "last_used": self.last_used,
            "state": "unloading" if self.leaving else self.state.value,
            "error": self.error.message if self.error else None,
        }
