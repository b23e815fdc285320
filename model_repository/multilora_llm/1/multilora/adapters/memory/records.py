"""The records of all adapters that somebody has named, bounded in number."""

from collections.abc import Callable, Container

from multilora.adapters.memory.state import AdapterRecord

_MANY = 10_000


class AdapterRecords(dict[str, AdapterRecord]):
    """By adapter id. Changed by the engine thread only; other threads may look one up."""

    def __init__(self) -> None:
        super().__init__()
        self._sweep_at = _MANY

    def count_token(self, adapter_id: str) -> None:
        """One generated token more; "" is the base model, which has no record."""
        if record := self.get(adapter_id):
            record.tokens += 1

    def forget(self, keep: Callable[[], Container[str]]) -> None:
        """Once there are many, drop those of which nothing but a history is known.

        `keep` names adapters in a tier or a queue. Costs O(1) for each record made meanwhile.
        """
        if len(self) < self._sweep_at:
            return
        kept = keep()
        for adapter_id, record in list(self.items()):
            if not (record.pending or record.pinned or adapter_id in kept):
                del self[adapter_id]
        self._sweep_at = max(_MANY, 2 * len(self))
