"""What administrators and the folder watch ask of the adapters: on any thread.

A command is answered through a Future that the engine thread completes; it may take as long as a
download. Anything that touches records, tiers or sequences is posted to the engine thread.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from multilora.adapters.admin.command import AdminCommand
from multilora.adapters.admin.deadline_futures import PendingAnswer, PendingAnswers
from multilora.adapters.admin.merged_adapters import MergedAdapters
from multilora.adapters.admin.template import template_answer
from multilora.adapters.memory.manager import AdapterStore
from multilora.adapters.memory.state import AdapterRecord
from multilora.adapters.merging.merger import AdapterMerger
from multilora.adapters.naming.catalog import AdapterCatalog
from multilora.adapters.naming.folders import AdapterFolders
from multilora.adapters.naming.source import AdapterSource, Origin
from multilora.adapters.naming.watch import FolderChanges
from multilora.errors import ErrorCode, RequestError, invalid
from multilora.scheduling.scheduler import Scheduler

Answer = dict[str, Any]
_READING = ("list", "info")
_LOADING = "it is still being read"


class AdapterAdmin:
    """`post` runs a function on the engine thread, which also ticks `pending` between its steps.
    `folders` is the directory that is watched, if there is one."""

    def __init__(
        self,
        catalog: AdapterCatalog,
        store: AdapterStore,
        scheduler: Scheduler,
        post: Callable[[Callable[[], None]], None],
        folders: AdapterFolders | None,
        merger: AdapterMerger,
        switched_on: bool,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._scheduler = scheduler
        self._post = post
        self._folders = folders
        self._merged = MergedAdapters(catalog, store, merger, post, self._shown)
        self._switched_on = switched_on
        self.pending = PendingAnswers()

    def execute(self, command: AdminCommand, timeout: float) -> "Future[Answer]":
        """Any thread. `timeout` in seconds, unless the command has its own. RequestError: refused.

        The answers are described in docs/adapters.md.
        """
        if command.action == "merge":
            return self._merge(command, command.timeout or timeout)
        if command.action == "template":
            return self._template(command, command.timeout or timeout)
        if not self._switched_on and command.action not in _READING:
            raise invalid(
                f"{command.action} is switched off on this server; start it with --adapter-admin on"
            )
        run = self._prepared(command)
        reason = "running requests still use it" if command.action == "unload" else _LOADING
        pending = self.pending.open(command.timeout or timeout, command.adapter_id, reason)
        self._post(lambda: run(pending))
        return pending.future

    def chat_template(self, adapter_id: str, timeout: float, token: str = "") -> "Future[Any]":
        """The adapter's own chat template, or None, once it has been read. Any thread."""
        record = self._store.records.get(adapter_id)
        if record is not None and record.facts is not None:
            known: Future[Any] = Future()
            known.set_result(record.chat_template)
            return known
        source = self._catalog.resolve(adapter_id, token)
        answer = self.pending.open(timeout, adapter_id, _LOADING)

        def read(error: RequestError | None) -> None:
            answer.complete(error, lambda: self._store.records[adapter_id].chat_template)

        self._post(lambda: self._store.want(source, read))
        return answer.future

    def close(self) -> None:
        """Nothing is answered any more."""
        self.pending.close()
        self._merged.merger.close()

    def folders_changed(self, changes: FolderChanges) -> None:
        """Any thread: the watch of the adapters directory has seen something."""
        self._post(lambda: self._follow(changes))

    def names_of_directory(self) -> list[str]:
        """Adapters of the watched directory that are in memory. Any thread."""
        records = list(self._store.records.values())
        return [r.adapter_id for r in records if r.key and r.source.origin is Origin.DIRECTORY]

    def _prepared(self, command: AdminCommand) -> Callable[[PendingAnswer], None]:
        """What the engine thread has to do, after all that may look at the disk."""
        if command.action == "list":
            sources = self._catalog.sources()
            entries = {s.adapter_id: AdapterRecord(s).entry("disk", 0, 0) for s in sources}
            return lambda pending: pending.complete(None, lambda: self._list(entries))
        if command.action == "load":
            source = self._catalog.source(command.adapter_id, command.source, command.revision)
            source = replace(source, token=command.adapter_token or source.token)
            return lambda pending: self._load(source, pending)
        if command.action == "unload":
            was_registered = self._catalog.unregister(command.adapter_id)  # new requests see it now
            return lambda pending: self._unload(command, pending, was_registered)
        return self._with_source(command)

    def _list(self, entries: dict[str, Answer]) -> Answer:
        """`entries` of all that could be loaded, as if nothing were known of them."""
        counts = self._scheduler.counts()
        for name, record in self._store.records.items():
            if name in entries or record.is_known or name in counts:
                entries[name] = self._entry(record, counts)
        slots, host = self._store.pool.slots, self._store.host
        return {
            "adapters": list(entries.values()),
            "memory": {
                "device_pages_used": slots.num_pages - slots.num_free,
                "device_pages": slots.num_pages,
                "page_bytes": self._store.pool.tensors.nbytes // slots.num_pages,
                "host_bytes_used": host.used_bytes,
                "host_bytes": host.max_bytes,
            },
        }

    def _entry(self, record: AdapterRecord, counts: dict[str, tuple[int, int]]) -> Answer:
        running, waiting = counts.get(record.adapter_id, (0, 0))
        return record.entry(self._store.tier(record), running, waiting)

    def _with_source(self, command: AdminCommand) -> Callable[[PendingAnswer], None]:
        """info, pin and unpin: of what is in memory, or else of what could be loaded."""
        source: AdapterSource | None = None
        refusal: RequestError | None = None
        try:
            source = self._catalog.resolve(command.adapter_id)
        except RequestError as error:
            refusal = error

        def run(pending: PendingAnswer) -> None:
            record = self._store.records.get(command.adapter_id)
            if record is None and source is not None:
                record = AdapterRecord(source)
            if record is None or (source is None and not record.is_known):
                assert refusal is not None
                pending.complete(refusal, lambda: None)
                return
            if command.action == "info":
                pending.complete(None, lambda: self._entry(record, self._scheduler.counts()))
                return
            self._store.pin(record.source, command.action == "pin")
            record = self._store.records[command.adapter_id]
            if command.action == "pin" and not self._store.in_memory(record):
                return self._load(record.source, pending)
            pending.complete(None, lambda: self._entry(record, self._scheduler.counts()))

        return run

    def _load(self, source: AdapterSource, pending: PendingAnswer) -> None:
        def loaded(error: RequestError | None) -> None:
            if error is None and source.origin in (Origin.REGISTERED, Origin.MERGED):
                self._catalog.register(source)  # kept once it has worked, whoever still listens
            pending.complete(error, lambda: self._shown(source.adapter_id))

        self._store.load(source, loaded)

    def _unload(self, command: AdminCommand, pending: PendingAnswer, was_registered: bool) -> None:
        adapter_id = command.adapter_id
        # again: a load may have registered it in between, and this is what ends that
        was_registered = self._catalog.unregister(adapter_id) or was_registered
        if adapter_id not in self._store.records:
            if was_registered:
                nothing = {"id": adapter_id, "freed_pages": 0, "freed_bytes": 0}
                pending.complete(None, lambda: nothing)
            else:
                message = f"adapter {adapter_id!r} is not in memory; the action list shows what is"
                pending.complete(RequestError(ErrorCode.NOT_FOUND, message), lambda: None)
            return
        message = f"adapter {adapter_id!r} has been unloaded; load it again or name another"
        reason = RequestError(ErrorCode.NOT_FOUND, message)
        pages = self._store.pool.num_pages(adapter_id)
        self._scheduler.abort_adapter(adapter_id, reason, running=command.cancel)
        self._store.pin(self._store.records[adapter_id].source, False)
        freed = self._store.withdraw(adapter_id)
        answer = {"id": adapter_id, "freed_pages": pages, "freed_bytes": freed}
        self._store.when_gone(adapter_id, lambda error: pending.complete(error, lambda: answer))

    def _template(self, command: AdminCommand, timeout: float) -> "Future[Answer]":
        """As a chat with this adapter would be rendered."""
        found = self.chat_template(command.adapter_id, timeout, command.adapter_token)
        return template_answer(command.adapter_id, found)

    def _merge(self, command: AdminCommand, timeout: float) -> "Future[Answer]":
        assert command.merge is not None
        name = "+".join(command.merge.ids)
        pending = self.pending.open(timeout, name, "it is still being merged")
        self._post(lambda: None)  # a thread that sleeps would not see when the time is out
        self._merged.answer(command.merge, command.adapter_token, pending)
        return pending.future

    def _shown(self, adapter_id: str) -> Answer:
        return self._entry(self._store.records[adapter_id], self._scheduler.counts())

    def _follow(self, changes: FolderChanges) -> None:
        assert self._folders is not None  # or nobody would watch
        at: dict[str, list[AdapterRecord]] = {}  # LORA_ADAPTERS may name a folder of it too
        for record in self._store.records.values():
            at.setdefault(record.source.location, []).append(record)
        for name in changes.added + changes.replaced:
            for record in at.get(self._folders.location(name), ()):
                self._store.refresh(record.adapter_id)
        for name in changes.removed:
            for record in at.get(self._folders.location(name), ()):
                if record.source.origin is Origin.DIRECTORY:
                    message = f"the folder of adapter {name!r} has been removed; name another"
                    reason = RequestError(ErrorCode.NOT_FOUND, message)
                    self._scheduler.abort_adapter(name, reason, running=False)
                    self._store.withdraw(name)
