"""What administrators and the folder watch ask of the adapters: on any thread.

A command is answered through a Future that the engine thread completes; it may take as long as a
download. Anything that touches records, tiers or sequences is posted to the engine thread.
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from multilora.adapter_catalog import AdapterCatalog
from multilora.adapter_record import AdapterRecord
from multilora.adapter_source import AdapterSource, Origin
from multilora.adapter_store import AdapterStore
from multilora.adapter_watch import FolderChanges
from multilora.admin_command import AdminCommand
from multilora.errors import ErrorCode, RequestError, invalid
from multilora.pending_answers import PendingAnswer, PendingAnswers
from multilora.scheduler import Scheduler

Answer = dict[str, Any]
_READING = ("list", "info")
_LOADING = "it is still being read"


class AdapterAdmin:
    """`post` runs a function on the engine thread; `tick` is called there, between steps.
    `directory` is the one that is watched, "" when there is none."""

    def __init__(
        self,
        catalog: AdapterCatalog,
        store: AdapterStore,
        scheduler: Scheduler,
        post: Callable[[Callable[[], None]], None],
        directory: str,
        switched_on: bool,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._scheduler = scheduler
        self._post = post
        self._directory = directory
        self._switched_on = switched_on
        self.pending = PendingAnswers()

    def execute(self, command: AdminCommand, timeout: float) -> "Future[Answer]":
        """Any thread. `timeout` in seconds, unless the command has its own. RequestError: refused.

        The answers are described in docs/adapters.md.
        """
        if not self._switched_on and command.action not in _READING:
            raise invalid(
                f"{command.action} is switched off on this server; start it with --adapter-admin on"
            )
        reason = "running requests still use it" if command.action == "unload" else _LOADING
        pending = PendingAnswer.within(command.timeout or timeout, command.adapter_id, reason)
        if command.action == "list":
            sources = self._catalog.sources()  # may look at the disk: not on the engine thread
            self._post(lambda: pending.complete(None, lambda: self._list(sources)))
        elif command.action == "load":
            source = self._catalog.source(command.adapter_id, command.source, command.revision)
            self._post(lambda: self._load(source, command, pending))
        elif command.action == "unload":
            was_registered = self._catalog.unregister(command.adapter_id)  # new requests see it now
            self._post(lambda: self._unload(command, pending, was_registered))
        else:
            self._post(self._with_source(command, pending))
        return pending.future

    def chat_template(self, adapter_id: str, timeout: float) -> "Future[Any]":
        """The adapter's own chat template, or None, once it has been read. Any thread."""
        answer = PendingAnswer.within(timeout, adapter_id, _LOADING)
        record = self._store.records.get(adapter_id)
        if record is not None and record.facts is not None:
            answer.complete(None, lambda: record.chat_template)
            return answer.future
        source = self._catalog.resolve(adapter_id)

        def read(error: RequestError | None) -> None:
            answer.complete(error, lambda: self._store.records[adapter_id].chat_template)

        def want() -> None:
            self.pending.add(answer)
            self._store.want(source, read)

        self._post(want)
        return answer.future

    def folders_changed(self, changes: FolderChanges) -> None:
        """Any thread: the watch of the adapters directory has seen something."""
        self._post(lambda: self._follow(changes))

    def names_of_directory(self) -> list[str]:
        """Adapters of the watched directory that are in memory. Any thread."""
        records = list(self._store.records.values())
        return [r.adapter_id for r in records if r.key and r.source.origin is Origin.DIRECTORY]

    def _list(self, sources: list[AdapterSource]) -> Answer:
        counts = self._scheduler.counts()
        records = {source.adapter_id: AdapterRecord(source) for source in sources}
        for record in self._store.records.values():
            if record.adapter_id in records or record.is_known or record.adapter_id in counts:
                records[record.adapter_id] = record
        slots, host = self._store.pool.slots, self._store.host
        return {
            "adapters": [self._entry(record, counts) for record in records.values()],
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

    def _with_source(self, command: AdminCommand, pending: PendingAnswer) -> Callable[[], None]:
        """info, pin and unpin: of what is in memory, or else of what could be loaded."""
        source: AdapterSource | None = None
        refusal: RequestError | None = None
        try:
            source = self._catalog.resolve(command.adapter_id)
        except RequestError as error:
            refusal = error

        def run() -> None:
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
            if command.action == "pin" and not record.key:
                return self._load(record.source, command, pending)
            record = self._store.records[command.adapter_id]
            pending.complete(None, lambda: self._entry(record, self._scheduler.counts()))

        return run

    def _load(self, source: AdapterSource, command: AdminCommand, pending: PendingAnswer) -> None:
        self.pending.add(pending)

        def loaded(error: RequestError | None) -> None:
            if error is None and source.origin is Origin.REGISTERED:
                self._catalog.register(source)  # kept once it has worked, whoever still listens
            pending.complete(error, answer)

        def answer() -> Answer:
            record = self._store.records[source.adapter_id]
            return self._entry(record, self._scheduler.counts())

        self._store.load(source, loaded)

    def _unload(self, command: AdminCommand, pending: PendingAnswer, was_registered: bool) -> None:
        adapter_id = command.adapter_id
        if adapter_id not in self._store.records:
            if was_registered:
                nothing = {"id": adapter_id, "freed_pages": 0, "freed_bytes": 0}
                pending.complete(None, lambda: nothing)
            else:
                message = f"adapter {adapter_id!r} is not in memory; see the action list"
                pending.complete(RequestError(ErrorCode.NOT_FOUND, message), lambda: None)
            return
        self.pending.add(pending)
        message = f"adapter {adapter_id!r} has been unloaded; load it again or name another"
        reason = RequestError(ErrorCode.NOT_FOUND, message)
        pages = self._store.pool.num_pages(adapter_id)
        self._scheduler.abort_adapter(adapter_id, reason, running=command.cancel)
        self._store.pin(self._store.records[adapter_id].source, False)
        freed = self._store.withdraw(adapter_id)
        answer = {"id": adapter_id, "freed_pages": pages, "freed_bytes": freed}
        self._store.when_gone(adapter_id, lambda error: pending.complete(error, lambda: answer))

    def _follow(self, changes: FolderChanges) -> None:
        for name in changes.added + changes.replaced:
            for record in self._at(name):
                self._store.refresh(record.adapter_id)
        for name in changes.removed:
            for record in self._at(name):
                if record.source.origin is Origin.DIRECTORY:
                    message = f"the folder of adapter {name!r} has been removed; name another"
                    reason = RequestError(ErrorCode.NOT_FOUND, message)
                    self._scheduler.abort_adapter(name, reason, running=False)
                    self._store.withdraw(name)

    def _at(self, name: str) -> list[AdapterRecord]:
        """Under whatever id: LORA_ADAPTERS may name a folder of the directory too."""
        location = f"{self._directory}/{name}"
        return [r for r in self._store.records.values() if r.source.location == location]
