"""Merged adapters while the server runs: answers to merges, and what leaves for them."""

from collections.abc import Callable
from typing import Any

from multilora.adapters.admin.deadline_futures import PendingAnswer
from multilora.adapters.memory.manager import AdapterStore
from multilora.adapters.merging.merger import AdapterMerger, Merged
from multilora.adapters.merging.recipe import MergeRecipe
from multilora.adapters.naming.catalog import AdapterCatalog
from multilora.errors import RequestError


class MergedAdapters:
    """`post` runs a function on the engine thread; `entry` shows the adapter of an id, there."""

    def __init__(
        self,
        catalog: AdapterCatalog,
        store: AdapterStore,
        merger: AdapterMerger,
        post: Callable[[Callable[[], None]], None],
        entry: Callable[[str], dict[str, Any]],
    ) -> None:
        self.merger = merger
        self._catalog = catalog
        self._store = store
        self._post = post
        self._entry = entry

    def answer(self, recipe: MergeRecipe, token: str, pending: PendingAnswer) -> None:
        """Any thread. For whoever sends requests: nothing is served that they may not name."""
        try:
            self.merger.submit(
                recipe, token, lambda outcome: self._post(lambda: self._use(outcome, pending))
            )
        except RequestError as error:
            pending.complete(error, lambda: None)

    def _use(self, outcome: Merged | RequestError, pending: PendingAnswer) -> None:
        if isinstance(outcome, RequestError):
            return pending.complete(outcome, lambda: None)
        for adapter_id in outcome.dropped:
            self._catalog.unregister(adapter_id)
            if adapter_id in self._store.records:
                self._store.withdraw(adapter_id)
        source = outcome.source
        record = self._store.records.get(source.adapter_id)
        if record and record.error:  # the folder was gone, and is here again
            self._store.refresh(source.adapter_id)

        def loaded(error: RequestError | None) -> None:
            if error is None:
                self._catalog.register(source)
            pending.complete(error, lambda: self._entry(source.adapter_id))

        self._store.want(source, loaded)
