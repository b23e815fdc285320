"""What the scheduler asks of adapter memory: a key is an adapter's content identity."""

from enum import Enum, auto
from typing import Protocol


class NotReady(Enum):
    """Why an adapter cannot be used in this pass."""

    LOADING = auto()  # on its way to the device pool; no running sequence is in its way
    NO_ROOM = auto()  # the device pool is full of adapters in use


class AdapterGate(Protocol):
    """Answers for one pass; nothing here waits."""

    def acquire(self, adapter_id: str) -> str | NotReady:
        """Reference the adapter's pages for one sequence → its key. RequestError: it failed."""
        ...

    def release(self, adapter_key: str) -> None:
        """Give one reference back."""
        ...

    def pages(self, adapter_key: str) -> tuple[int, ...]:
        """The pool pages of a referenced adapter."""
        ...

    def unwanted(self, adapter_id: str) -> None:
        """Nobody waits for the adapter any more: each has started, or has ended."""
        ...

    def is_resident(self, adapter_id: str) -> bool:
        """The version that new sequences would use stands in the pool: it needs no page more."""
        ...

    def shortage(self, adapter_id: str) -> int:
        """How many pages in use must fall idle before the adapter fits; 0: none, or not known."""
        ...
