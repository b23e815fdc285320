"""Adapters while they live: read into host memory, copied to the device pool, replaced, unloaded.

AdapterLoader reads, HostAdapterCache keeps the checkpoints, DeviceAdapterCache the rank pages; an
AdapterState is what is known of one id. Laws: nothing here waits. A new version is used by new
sequences only, once it has been read whole. Files that cannot be read leave the version in memory
in use. A failed adapter is not read again for a while. Engine thread only, once that has started.
"""

import contextlib
import logging
import queue
import time
from collections.abc import Callable, Iterable

from multilora.adapters.checkpoint.adapter import Adapter
from multilora.adapters.memory.device_cache import DeviceAdapterCache, adapter_id_of
from multilora.adapters.memory.host_cache import HostAdapterCache
from multilora.adapters.memory.loader import AdapterLoader, LoadResult
from multilora.adapters.memory.state import AdapterState, AdapterStates, Done, LoadState
from multilora.adapters.naming.source import AdapterSource, named_error
from multilora.errors import RequestError, internal
from multilora.lora.rank_pages import RankPagePool
from multilora.request import AdapterSet
from multilora.scheduling.adapter_cache import CacheMiss

_LOG = logging.getLogger(__name__)


class AdapterManager:
    """Implements the scheduler's AdapterCache. `host_bytes` bounds the host tier."""

    def __init__(
        self,
        read: Callable[[AdapterSource], Adapter],
        tensors: RankPagePool,
        host_bytes: int,
        wake: Callable[[], None],
        downloads: int = 1,
    ) -> None:
        self.device = DeviceAdapterCache(tensors, wake)
        self.host = HostAdapterCache(host_bytes)
        self.states = AdapterStates()
        self.loading = 0  # adapters being read
        self.reads = self.failures = 0
        self.read_seconds = 0.0
        self._loader: AdapterLoader[Adapter] = AdapterLoader(read, wake, downloads)

    # What the scheduler asks; see AdapterCache. Sets have one adapter.

    def acquire(self, adapters: AdapterSet) -> AdapterSet | CacheMiss:
        state = self.states[adapters.only]
        if state.key not in self.device and not self._bring(state):
            return CacheMiss.NO_ROOM
        if not self.device.is_ready(state.key):
            self.device.want(state.key, True)
            return CacheMiss.LOADING
        self.device.acquire(state.key)
        state.last_used = time.monotonic()
        return AdapterSet.of(state.key)

    def release(self, key: AdapterSet) -> None:
        if self.device.release(key.only):
            self._end_unload(adapter_id_of(key.only))

    def pages(self, key: AdapterSet) -> tuple[int, ...]:
        return self.device.allocator.pages(key.only)

    def is_resident(self, adapters: AdapterSet) -> bool:
        state = self.states.get(adapters.only)
        return state is not None and state.key in self.device

    def is_kept(self, adapters: AdapterSet) -> bool:
        state = self.states.get(adapters.only)
        return state is not None and self.device.is_wanted(state.key)

    def end_token_ids(self, adapters: AdapterSet) -> frozenset[int]:
        state = self.states.get(adapters.only)
        return state.text.end_token_ids if state else frozenset()

    def shortage(self, adapters: AdapterSet) -> int:
        state = self.states.get(adapters.only)
        if state is None or state.facts is None or state.key in self.device:
            return 0
        return self.device.allocator.shortage(state.facts.num_pages)

    def unwanted(self, adapters: AdapterSet) -> None:
        if state := self.states.get(adapters.only):
            state.wanted = False
            self.host.unwanted(state.adapter_id)
            self.device.want(state.key, False)

    # What the engine does for a request, and between two steps.

    def register(self, source: AdapterSource) -> AdapterState:
        """The state of an adapter that somebody has named."""
        state = self.states.setdefault(source.adapter_id, AdapterState(source))
        if state.source != source and not self.in_memory(state):
            if not state.pending:
                state.forget_version()  # of another source
            state.source = source
        return state

    def prefetch(self, source: AdapterSource) -> None:
        """A request for the adapter has arrived: read the files now, before its turn comes."""
        state = self.register(source)
        state.wanted = True
        if not self.in_memory(state) and not state.recent_failure:
            self._read(state)

    def poll(self, wait: bool = False) -> None:
        """Take what has been read and copied since the last call; `wait`: at least one load."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._finish_load(self._loader.results.get(block=wait))
                wait = False
        self._finish_copies()

    def finish_copies(self) -> None:
        """Wait until no copy is under way."""
        while self.device.is_copying:
            self._finish_copies(wait=True)

    def forget_unused(self, in_use: Callable[[], Iterable[str]]) -> None:
        """Drop the states of adapters that are in no tier and no queue, once there are many."""
        resident = map(adapter_id_of, self.device.allocator.resident)
        self.states.forget(lambda: {*in_use(), *self.host, *resident})

    def close(self) -> None:
        self._loader.close()
        self.device.close()

    # What administrators, the folder watch and the start of the server ask.

    def load(self, source: AdapterSource, done: Done) -> None:
        """Read the adapter anew into host memory, and the pool if it has room; then tell `done`."""
        state = self.states.setdefault(source.adapter_id, AdapterState(source))
        state.load_waiters.append(done)
        if state.pending == source:
            state.files_changed = True  # what is being read may be older than this call
        else:
            self._ask_loader(state, source)

    def ensure_loaded(self, source: AdapterSource, done: Done) -> None:
        """Tell `done` once the adapter has been read, at once when that was long ago."""
        state = self.register(source)
        if state.facts:
            return done(None)
        if error := state.recent_failure:
            return done(error)
        state.load_waiters.append(done)
        if not state.pending:
            self._ask_loader(state, source)

    def refresh(self, adapter_id: str) -> None:
        """The files have changed: read them again if they are in memory, or forget a failure."""
        if (state := self.states.get(adapter_id)) is None:
            return
        if state.pending:
            state.files_changed = True
        elif self.in_memory(state):
            self._ask_loader(state, state.source)
        else:
            state.forget_version()

    def unload(self, adapter_id: str) -> int:
        """No new sequence uses what is in memory → bytes of host memory freed.

        The host tier is free at once, the pages of the pool with their last reference.
        """
        state = self.states[adapter_id]
        self.loading -= state.pending is not None
        state.forget_version()
        self.device.retire_all(adapter_id)
        return self.host.evict(adapter_id)

    def when_unloaded(self, adapter_id: str, done: Done) -> None:
        """Tell `done` when the last page of an unloaded adapter is free."""
        self.states[adapter_id].unload_waiters.append(done)
        self._end_unload(adapter_id)

    def pin(self, source: AdapterSource, pinned: bool) -> None:
        """A pinned adapter is evicted from each tier after all that are not pinned."""
        self.register(source).pinned = pinned
        self.host.pin(source.adapter_id, pinned)
        self.device.pin(source.adapter_id, pinned)

    def tier(self, state: AdapterState) -> str:
        """The fastest tier that holds the version in use whole: device, host or disk."""
        in_host = "host" if state.adapter_id in self.host else "disk"
        return "device" if self.device.is_ready(state.key) else in_host

    def in_memory(self, state: AdapterState) -> bool:
        return state.key in self.device or state.adapter_id in self.host

    def _bring(self, state: AdapterState) -> bool:
        """Start to copy, or ask for the files; False: there is no room."""
        adapter = self.host.get(state.adapter_id)
        if adapter is None:
            if error := state.recent_failure:
                raise error
            self._read(state)
            return True
        return self.device.add(adapter, state.pinned, wanted=True)

    def _finish_copies(self, wait: bool = False) -> None:
        for adapter, error in self.device.take_copied(wait):
            state = self.states.get(adapter.adapter_id)
            if state is None:
                continue
            if error and state.key == adapter.key:
                self.host.evict(state.adapter_id)
                _LOG.error("copying adapter %s to the device", state.adapter_id, exc_info=error)
                failure = internal(f"copying it to the device failed: {error!r}")
                state.fail(named_error(state.adapter_id, failure), state.source)
            elif state.key == adapter.key:
                self.host.unwanted(state.adapter_id)
            self._end_unload(state.adapter_id)

    def _read(self, state: AdapterState) -> None:
        """Read for a request, unless host memory is full of adapters that are yet to be copied."""
        state.wanted = True
        if not state.pending and self.host.has_room and self._loader.has_room(state.source):
            self._ask_loader(state, state.source)

    def _ask_loader(self, state: AdapterState, source: AdapterSource) -> None:
        self.loading += state.pending is None
        state.load_state, state.pending = LoadState.LOADING, source
        state.files_changed = False
        state.ticket += 1
        self._loader.request(source, state.ticket)

    def _finish_load(self, result: LoadResult[Adapter]) -> None:
        state = self.states.get(result.source.adapter_id)
        if state is None or state.ticket != result.ticket:
            return
        self.loading -= 1
        self.reads += 1
        self.read_seconds += result.seconds
        error = self._use(state, result.adapter) if result.adapter else result.error
        self.failures += error is not None
        state.load_state, state.pending, state.error = LoadState.READY, None, error
        if error is None:
            state.source = result.source
        elif self.in_memory(state):
            _LOG.warning("%s; the version in memory stays in use", error.message)
        else:
            state.fail(error, result.source)
        if state.files_changed:
            self._ask_loader(state, result.source)
        else:
            state.end_load(error)

    def _use(self, state: AdapterState, adapter: Adapter) -> RequestError | None:
        """Make `adapter` the version of new sequences."""
        if error := self.device.refusal(adapter):
            return error
        if state.key != adapter.key:
            self.device.retire(state.key)
        self.device.revive(adapter.key)
        state.end_unload(state.used_again())
        # The text comes before the facts: other threads take it once they see the facts.
        state.text = adapter.text
        state.key, state.facts = adapter.key, adapter.facts
        self.host.put(adapter, state.wanted)
        free = self.device.allocator.num_free
        if adapter.key not in self.device and adapter.num_pages <= free:
            self.device.add(adapter, state.pinned, state.wanted)
        return None

    def _end_unload(self, adapter_id: str) -> None:
        state = self.states[adapter_id]
        if state.unload_waiters and not self.device.versions(adapter_id):
            state.end_unload(None)
