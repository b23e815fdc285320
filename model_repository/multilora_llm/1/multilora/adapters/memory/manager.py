"""Adapters while they live: read into host memory, copied to the device pool, replaced, unloaded.

AdapterLoader reads, AdapterHost keeps the checkpoints, AdapterPool the rank pages; an AdapterRecord
is what is known of one id. Laws: nothing here waits; a new version is used by new sequences only,
once it has been read whole; files that cannot be read do not take the version in memory away; a
failed adapter is not read again for a while. Engine thread only, once that has started.
"""

import contextlib
import logging
import queue
import time
from collections.abc import Callable, Iterable

from multilora.adapters.checkpoint.adapter import Adapter
from multilora.adapters.memory.device_cache import AdapterPool, adapter_id_of
from multilora.adapters.memory.host_cache import AdapterHost
from multilora.adapters.memory.loader import AdapterLoader, LoadResult
from multilora.adapters.memory.records import AdapterRecords
from multilora.adapters.memory.state import AdapterRecord, Done, LoadState
from multilora.adapters.naming.source import AdapterSource
from multilora.errors import RequestError, internal
from multilora.lora.adapter_pages import AdapterPages
from multilora.scheduling.adapter_cache import NotReady

_LOG = logging.getLogger(__name__)


class AdapterStore:
    """Implements the scheduler's AdapterGate. `host_bytes` bounds the host tier."""

    def __init__(
        self,
        read: Callable[[AdapterSource], Adapter],
        tensors: AdapterPages,
        host_bytes: int,
        wake: Callable[[], None],
        downloads: int = 1,
    ) -> None:
        self.pool = AdapterPool(tensors)
        self.host = AdapterHost(host_bytes)
        self.records = AdapterRecords()
        self.loading = 0  # adapters being read
        self.reads = self.failures = 0
        self.read_seconds = 0.0
        self._loader: AdapterLoader[Adapter] = AdapterLoader(read, wake, downloads)

    def acquire(self, adapter_id: str) -> str | NotReady:
        record = self.records[adapter_id]
        if record.key not in self.pool and not self._bring(record):
            return NotReady.NO_ROOM
        if not self.pool.is_whole(record.key):
            self.pool.want(record.key, True)
            return NotReady.LOADING
        self.pool.acquire(record.key)
        record.last_used = time.time()
        return record.key

    def release(self, adapter_key: str) -> None:
        if self.pool.release(adapter_key):
            self._end_unload(adapter_id_of(adapter_key))

    def pages(self, adapter_key: str) -> tuple[int, ...]:
        return self.pool.slots.pages(adapter_key)

    def is_resident(self, adapter_id: str) -> bool:
        return adapter_id in self.records and self.records[adapter_id].key in self.pool

    def shortage(self, adapter_id: str) -> int:
        record = self.records.get(adapter_id)
        if record is None or record.facts is None or record.key in self.pool:
            return 0
        return self.pool.slots.shortage(record.facts.num_pages)

    def learn(self, source: AdapterSource) -> AdapterRecord:
        """The record of an adapter that somebody has named."""
        record = self.records.setdefault(source.adapter_id, AdapterRecord(source))
        if record.source != source and not self.in_memory(record):
            if not record.pending:
                record.forget_version()  # of another source
            record.source = source
        return record

    def prepare(self, source: AdapterSource) -> None:
        """A request for the adapter has arrived: read the files now, before its turn comes."""
        record = self.learn(source)
        record.requests, record.wanted = record.requests + 1, True
        if not self.in_memory(record) and not record.recent_failure:
            self._read(record)

    def unwanted(self, adapter_id: str) -> None:
        if record := self.records.get(adapter_id):
            record.wanted = False
            self.host.unwanted(adapter_id)
            self.pool.want(record.key, False)

    def collect(self, wait: bool = False) -> None:
        """Take what the loader has finished since the last call; `wait`: at least one."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._finish_load(self._loader.results.get(block=wait))
                wait = False

    def copy(self, max_bytes: int | None) -> None:
        """Begin a pass, in which so many bytes (None: any) may be copied to the device."""
        self.pool.budget = max_bytes
        self._copy()

    def forget_unused(self, in_use: Callable[[], Iterable[str]]) -> None:
        """Drop the records of adapters that are in no tier and no queue, once there are many."""
        resident = map(adapter_id_of, self.pool.slots.resident)
        self.records.forget(lambda: {*in_use(), *self.host, *resident})

    def close(self) -> None:
        self._loader.close()

    def load(self, source: AdapterSource, done: Done) -> None:
        """Read the adapter anew into host memory, and the pool if it has room; then tell `done`."""
        record = self.records.setdefault(source.adapter_id, AdapterRecord(source))
        record.waiters.append(done)
        if record.pending == source:
            record.changed = True  # what is being read may be older than this call
        else:
            self._ask_loader(record, source)

    def want(self, source: AdapterSource, done: Done) -> None:
        """Tell `done` once the adapter has been read, which it may have been long ago."""
        record = self.learn(source)
        if record.facts:
            return done(None)
        if error := record.recent_failure:
            return done(error)
        record.waiters.append(done)
        if not record.pending:
            self._ask_loader(record, source)

    def refresh(self, adapter_id: str) -> None:
        """The files have changed: read them again if they are in memory, or forget a failure."""
        if (record := self.records.get(adapter_id)) is None:
            return
        if record.pending:
            record.changed = True
        elif self.in_memory(record):
            self._ask_loader(record, record.source)
        else:
            record.forget_version()

    def withdraw(self, adapter_id: str) -> int:
        """No new sequence uses what is in memory: free the host tier, and the pool's pages with
        their last reference → bytes of host memory freed."""
        record = self.records[adapter_id]
        self.loading -= record.pending is not None
        record.forget_version()
        self.pool.retire_all(adapter_id)
        return self.host.drop(adapter_id)

    def when_gone(self, adapter_id: str, done: Done) -> None:
        """Tell `done` when the last page of a withdrawn adapter is free."""
        self.records[adapter_id].leaving.append(done)
        self._end_unload(adapter_id)

    def pin(self, source: AdapterSource, pinned: bool) -> None:
        """A pinned adapter leaves each tier after all that are not."""
        self.learn(source).pinned = pinned
        self.host.pin(source.adapter_id, pinned)
        self.pool.pin(source.adapter_id, pinned)

    def tier(self, record: AdapterRecord) -> str:
        """The fastest place where the version in use stands whole: device, host or disk."""
        in_host = "host" if record.adapter_id in self.host else "disk"
        return "device" if self.pool.is_whole(record.key) else in_host

    def in_memory(self, record: AdapterRecord) -> bool:
        return record.key in self.pool or record.adapter_id in self.host

    def _bring(self, record: AdapterRecord) -> bool:
        """Copy as much as this pass allows, or ask for the files; False: there is no room."""
        adapter = self.host.get(record.adapter_id)
        if adapter is None:
            if error := record.recent_failure:
                raise error
            self._read(record)
            return True
        added = self.pool.add(adapter, record.pinned, wanted=True)
        self._copy()
        return added

    def _copy(self) -> None:
        try:
            for adapter_id in self.pool.copy():
                self.host.unwanted(adapter_id)
        except Exception as error:
            record = self.records[self.pool.give_up()]
            self.host.drop(record.adapter_id)
            message = f"adapter {record.adapter_id!r}: copying it to the device failed: {error!r}"
            _LOG.exception(message)
            record.fail(internal(message), record.source)

    def _read(self, record: AdapterRecord) -> None:
        """For a request; not while host memory is full of what has yet to be copied."""
        record.wanted = True
        if not record.pending and self.host.has_room and self._loader.has_room(record.source):
            self._ask_loader(record, record.source)

    def _ask_loader(self, record: AdapterRecord, source: AdapterSource) -> None:
        self.loading += record.pending is None
        record.state, record.pending, record.changed = LoadState.LOADING, source, False
        record.ticket += 1
        self._loader.request(source, record.ticket)

    def _finish_load(self, result: LoadResult[Adapter]) -> None:
        record = self.records.get(result.source.adapter_id)
        if record is None or record.ticket != result.ticket:
            return
        self.loading -= 1
        self.reads += 1
        self.read_seconds += result.seconds
        error = self._use(record, result.adapter) if result.adapter else result.error
        self.failures += error is not None
        record.state, record.pending, record.error = LoadState.READY, None, error
        if error is None:
            record.source = result.source
        elif self.in_memory(record):
            _LOG.warning("%s; the version in memory stays in use", error.message)
        else:
            record.fail(error, result.source)
        if record.changed:
            self._ask_loader(record, result.source)
        else:
            record.end_load(error)

    def _use(self, record: AdapterRecord, adapter: Adapter) -> RequestError | None:
        """Make `adapter` the version of new sequences."""
        if error := self.pool.refusal(adapter):
            return error
        if record.key != adapter.key:
            self.pool.retire(record.key)
        self.pool.revive(adapter.key)
        record.end_unload(record.used_again())
        record.chat_template = adapter.chat_template  # before the facts: other threads look at both
        record.key, record.facts = adapter.key, adapter.facts
        self.host.keep(adapter, record.wanted)
        if adapter.key not in self.pool and adapter.num_pages <= self.pool.slots.num_free:
            self.pool.add(adapter, record.pinned, record.wanted)
        return None

    def _end_unload(self, adapter_id: str) -> None:
        record = self.records[adapter_id]
        if record.leaving and not self.pool.versions(adapter_id):
            record.end_unload(None)
