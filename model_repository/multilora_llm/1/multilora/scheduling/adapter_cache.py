"""AdapterCache: what the scheduler asks of adapter memory.

An argument `adapters` names adapters by id, as requests do; a `key` is the same set by content
identity.
"""

from enum import Enum, auto
from typing import Protocol

from multilora.request import AdapterSet


class CacheMiss(Enum):
    """Why adapters cannot be used in this pass."""

    LOADING = auto()  # on their way to the device pool; no running sequence is in their way
    NO_ROOM = auto()  # the device pool is full of adapters in use


class AdapterCache(Protocol):
    """Answers for one pass; nothing here waits."""

    def acquire(self, adapters: AdapterSet) -> AdapterSet | CacheMiss:
        """Reference the adapters' pages for one sequence → their key. RequestError: it failed."""
        ...

    def release(self, key: AdapterSet) -> None:
        """Give one reference back."""
        ...

    def pages(self, key: AdapterSet) -> tuple[int, ...]:
        """The pool pages of referenced adapters."""
        ...

    def unwanted(self, adapters: AdapterSet) -> None:
        """No sequence waits for the adapters any more: each has started, or has ended."""
        ...

    def is_resident(self, adapters: AdapterSet) -> bool:
        """The version that new sequences would use stands in the pool and needs no page more."""
        ...

    def is_kept(self, adapters: AdapterSet) -> bool:
        """That version stands in the pool and stays there until a sequence has used it."""
        ...

    def end_token_ids(self, adapters: AdapterSet) -> frozenset[int]:
        """The tokens that end an answer of the version that new sequences would use, beside the
        base model's."""
        ...

    def shortage(self, adapters: AdapterSet) -> int:
        """How many pages in use must fall idle before the adapters fit; 0: none, or not known."""
        ...
