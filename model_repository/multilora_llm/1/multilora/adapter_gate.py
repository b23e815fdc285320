"""What the scheduler asks of adapter memory: a key is an adapter's content identity."""

from enum import Enum, auto
from typing import Protocol


class NotReady(Enum):
    """Why an adapter cannot be used in this pass."""

    LOADING = auto()  # not in host memory yet
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
