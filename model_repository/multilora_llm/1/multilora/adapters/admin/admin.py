"""AdapterAdmin: what administrators, merges and the folder watch ask, on any thread.

A command is answered through a Future that the engine thread completes; the answer may take as long
as a download. Law: whatever touches adapter states, tiers or sequences is posted to the engine
thread. The answers are described in docs/adapters.md.
"""

import hmac
import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from multilora.adapters.admin.command import AdminCommand
from multilora.adapters.admin.deadline_futures import DeadlineFuture, DeadlineFutures
from multilora.adapters.checkpoint.text import AdapterText
from multilora.adapters.memory.manager import AdapterManager
from multilora.adapters.memory.state import AdapterState, LoadState
from multilora.adapters.merging.merger import AdapterMerger, Merged
from multilora.adapters.naming.catalog import AdapterCatalog
from multilora.adapters.naming.folders import AdapterFolders
from multilora.adapters.naming.source import AdapterSource, named_error
from multilora.adapters.naming.watch import FolderChanges
from multilora.errors import ErrorCode, RequestError, invalid
from multilora.scheduling.scheduler import Scheduler
from multilora_api.admin import CHANGES, Origin

Answer = dict[str, Any]
_LOADING = "it is still being read"
_CHECK_SECONDS = 0.2  # for folders that a list tells of: the others are looked at by later lists


class AdapterAdmin:
    """`post` runs a function on the engine thread, which also ticks `pending` between its steps.
    `folders` is the directory that is watched, if there is one; `refusal` tells of a folder in it
    why it cannot be served, so far as that can be told quickly. Changes need `key`, unless it is
    empty, and that they are `switched_on`."""

    def __init__(
        self,
        catalog: AdapterCatalog,
        manager: AdapterManager,
        scheduler: Scheduler,
        post: Callable[[Callable[[], None]], None],
        folders: AdapterFolders | None,
        merger: AdapterMerger,
        refusal: Callable[[Path], RequestError | None],
        switched_on: bool,
        key: str,
    ) -> None:
        self._catalog = catalog
        self._manager = manager
        self._scheduler = scheduler
        self._post = post
        self._folders = folders
        self._merger = merger
        self._refusal = refusal
        self._switched_on = switched_on
        self._key = key.encode()
        self.pending = DeadlineFutures()

    def execute(self, command: AdminCommand, timeout: float) -> "Future[Answer]":
        """Any thread. `timeout` in seconds, unless the command has its own. RequestError: refused.

        `merge` and `template` are for whoever sends requests, so that no setting switches them off.
        """
        seconds = command.timeout or timeout
        if command.action == "merge":
            return self._merge(command, seconds)
        if command.action == "template":
            return self._template(command, seconds)
        if command.action in CHANGES:
            self._check_right(command)
        run = self._prepared(command)
        reason = "running requests still use it" if command.action == "unload" else _LOADING
        pending = self.pending.open(seconds, command.adapter_id, reason)
        self._post(lambda: run(pending))
        return pending.future

    def _check_right(self, command: AdminCommand) -> None:
        if not self._switched_on:
            raise invalid(
                f"{command.action} is switched off on this server; start it with --adapter-admin on"
            )
        if self._key and not hmac.compare_digest(command.admin_key.encode(), self._key):
            raise invalid(
                f"{command.action} needs the admin key, which the server was started with; send it "
                "as admin_key"
            )

    def text(self, adapter_id: str, timeout: float, token: str = "") -> "Future[AdapterText]":
        """What the adapter says about text, once it has been read. Any thread."""
        state = self._manager.states.get(adapter_id)
        if state is not None and state.facts is not None:
            known: Future[AdapterText] = Future()
            known.set_result(state.text)
            return known
        source = self._catalog.resolve(adapter_id, token)
        pending = self.pending.open(timeout, adapter_id, _LOADING)

        def loaded(error: RequestError | None) -> None:
            pending.complete(error, lambda: self._manager.states[adapter_id].text)

        self._post(lambda: self._manager.ensure_loaded(source, loaded))
        return pending.future

    def folders_changed(self, changes: FolderChanges) -> None:
        """Any thread: the watch of the adapters directory reports changes, maybe very many."""
        assert self._folders is not None  # or nobody would watch
        location = self._folders.location
        fresh = {location(name) for name in changes.added + changes.replaced}
        gone = {location(name) for name in changes.removed}
        self._post(lambda: self._follow(fresh, gone))

    def names_of_directory(self) -> list[str]:
        """Adapters of the watched directory that are in memory. Any thread."""
        states = list(self._manager.states.values())
        return [s.adapter_id for s in states if s.key and s.source.origin is Origin.DIRECTORY]

    def close(self) -> None:
        """Fail what is pending; nothing is answered any more."""
        self.pending.close()
        self._merger.close()

    def _prepared(self, command: AdminCommand) -> Callable[[DeadlineFuture], None]:
        """What the engine thread has to do; all that may look at the disk is done here, before."""
        if command.action == "list":
            sources, following = self._catalog.listed(command.after)
            until = time.monotonic() + _CHECK_SECONDS
            entries = {s.adapter_id: _entry(self._unread(s, until), "disk", 0, 0) for s in sources}
            others = not command.after
            return lambda pending: pending.complete(
                None, lambda: {**self._list(entries, others), "next": following}
            )
        if command.action == "load":
            source = self._catalog.source(command.adapter_id, command.source, command.revision)
            source = replace(source, token=command.adapter_token or source.token)
            return lambda pending: self._load(source, pending)
        if command.action == "unload":
            # Unregistered at once, so that requests that arrive from now on are refused.
            was_registered = self._catalog.unregister(command.adapter_id)
            return lambda pending: self._unload(command, pending, was_registered)
        return self._with_source(command)

    def _list(self, entries: dict[str, Answer], others: bool) -> Answer:
        """`entries` are of adapters that could be loaded, as if none had ever been; `others`: with
        all that are in memory or in use."""
        counts = self._scheduler.counts()
        for name, state in self._manager.states.items():
            is_shown = others and (state.is_known or name in counts)
            if is_shown or (name in entries and (state.is_known or not entries[name]["error"])):
                entries[name] = self._shown(state, counts)
        device, host = self._manager.device, self._manager.host
        pages = device.allocator
        return {
            "adapters": list(entries.values()),
            "memory": {
                "device_pages_used": pages.num_pages - pages.num_free,
                "device_pages": pages.num_pages,
                "page_bytes": device.tensors.nbytes // pages.num_pages,
                "host_bytes_used": host.used_bytes,
                "host_bytes": host.max_bytes,
            },
        }

    def _unread(self, source: AdapterSource, until: float = math.inf) -> AdapterState:
        """As if nobody had named the adapter yet. Its folder is looked at, unless the time is past
        `until` (time.monotonic())."""
        state = AdapterState(source)
        looked_at = source.origin is Origin.DIRECTORY and time.monotonic() < until
        if looked_at and (error := self._refusal(Path(source.location))):
            state.load_state = LoadState.FAILED
            state.error = named_error(source.adapter_id, error)
        return state

    def _with_source(self, command: AdminCommand) -> Callable[[DeadlineFuture], None]:
        """info, pin and unpin: of an adapter in memory, or else of one that could be loaded."""
        source: AdapterSource | None = None
        unread: AdapterState | None = None
        refusal: RequestError | None = None
        try:
            source = self._catalog.resolve(command.adapter_id)
            unread = self._unread(source)
        except RequestError as error:
            refusal = error

        def run(pending: DeadlineFuture) -> None:
            state = self._manager.states.get(command.adapter_id)
            if unread and not (state and (state.is_known or not unread.error)):
                state = unread
            if state is None or (source is None and not state.is_known):
                assert refusal is not None
                pending.complete(refusal, lambda: None)
                return
            if command.action == "info":
                pending.complete(None, lambda: self._shown(state, self._scheduler.counts()))
                return
            self._manager.pin(state.source, command.action == "pin")
            state = self._manager.states[command.adapter_id]
            if command.action == "pin" and not self._manager.in_memory(state):
                return self._load(state.source, pending)
            pending.complete(None, lambda: self._shown(state, self._scheduler.counts()))

        return run

    def _load(self, source: AdapterSource, pending: DeadlineFuture) -> None:
        def loaded(error: RequestError | None) -> None:
            if error is None and source.origin in (Origin.REGISTERED, Origin.MERGED):
                self._catalog.register(source)  # even when the deadline has passed meanwhile
            pending.complete(error, lambda: self._info(source.adapter_id))

        self._manager.load(source, loaded)

    def _unload(self, command: AdminCommand, pending: DeadlineFuture, was_registered: bool) -> None:
        adapter_id = command.adapter_id
        # A load may have registered the adapter since `_prepared`, and ends here.
        was_registered = self._catalog.unregister(adapter_id) or was_registered
        state = self._manager.states.get(adapter_id)
        in_use = adapter_id in self._scheduler.counts()
        if state is None or not (state.is_known or state.pinned or in_use):
            if was_registered:
                nothing = {"id": adapter_id, "freed_pages": 0, "freed_bytes": 0}
                pending.complete(None, lambda: nothing)
            else:
                message = f"adapter {adapter_id!r} is not in memory; the action list shows what is"
                pending.complete(RequestError(ErrorCode.NOT_FOUND, message), lambda: None)
            return
        message = f"adapter {adapter_id!r} has been unloaded; load it again or name another"
        reason = RequestError(ErrorCode.NOT_FOUND, message)
        pages = self._manager.device.num_pages(adapter_id)
        self._scheduler.abort_adapter(adapter_id, reason, running=command.cancel)
        self._manager.pin(state.source, False)
        freed = self._manager.unload(adapter_id)
        answer = {"id": adapter_id, "freed_pages": pages, "freed_bytes": freed}
        self._manager.when_unloaded(
            adapter_id, lambda error: pending.complete(error, lambda: answer)
        )

    def _template(self, command: AdminCommand, timeout: float) -> "Future[Answer]":
        """The adapter's own chat templates; None: those of the base model render its chats."""
        answer: Future[Answer] = Future()

        def show(found: "Future[AdapterText]") -> None:
            if error := found.exception():
                return answer.set_exception(error)
            templates = found.result().templates
            answer.set_result({"id": command.adapter_id, **templates.as_json()})

        found = self.text(command.adapter_id, timeout, command.adapter_token)
        found.add_done_callback(show)
        return answer

    def _merge(self, command: AdminCommand, timeout: float) -> "Future[Answer]":
        """A merge serves nothing that the one who asks for it may not name."""
        assert command.merge is not None
        name = "+".join(command.merge.ids)
        pending = self.pending.open(timeout, name, "it is still being merged")
        self._post(lambda: None)  # wakes the engine thread, which then sleeps up to the deadline

        def merged(outcome: Merged | RequestError) -> None:
            self._post(lambda: self._use_merged(outcome, pending))

        try:
            self._merger.submit(command.merge, command.adapter_token, merged)
        except RequestError as error:
            pending.complete(error, lambda: None)
        return pending.future

    def _use_merged(self, outcome: Merged | RequestError, pending: DeadlineFuture) -> None:
        if isinstance(outcome, RequestError):
            return pending.complete(outcome, lambda: None)
        for adapter_id in outcome.dropped:
            self._catalog.unregister(adapter_id)
            if adapter_id in self._manager.states:
                self._manager.unload(adapter_id)
        source = outcome.source
        state = self._manager.states.get(source.adapter_id)
        if state and state.error:  # the merge had left the disk, and is there again
            self._manager.refresh(source.adapter_id)

        def loaded(error: RequestError | None) -> None:
            if error is None:
                self._catalog.register(source)
            pending.complete(error, lambda: self._info(source.adapter_id))

        self._manager.ensure_loaded(source, loaded)

    def _follow(self, fresh: set[str], gone: set[str]) -> None:
        """Folders with new files, and folders that have been removed. LORA_ADAPTERS may name a
        watched folder too."""
        for name, state in list(self._manager.states.items()):
            if state.source.location in fresh:
                self._manager.refresh(name)
            elif state.source.location in gone and state.source.origin is Origin.DIRECTORY:
                message = f"the folder of adapter {name!r} has been removed; name another"
                reason = RequestError(ErrorCode.NOT_FOUND, message)
                self._scheduler.abort_adapter(name, reason, running=False)
                self._manager.unload(name)

    def _info(self, adapter_id: str) -> Answer:
        return self._shown(self._manager.states[adapter_id], self._scheduler.counts())

    def _shown(self, state: AdapterState, counts: dict[str, tuple[int, int]]) -> Answer:
        running, waiting = counts.get(state.adapter_id, (0, 0))
        return _entry(state, self._manager.tier(state), running, waiting)


def _entry(state: AdapterState, tier: str, running: int, waiting: int) -> Answer:
    """An adapter as administrators see it (JSON); None stands for what has not been read yet."""
    facts = state.facts
    return {
        "id": state.adapter_id,
        "source": state.source.location,
        "revision": state.source.revision,
        "origin": state.source.origin.value,
        "digest": facts.digest if facts else None,
        "rank": facts.rank if facts else None,
        "modules": list(facts.modules) if facts else None,
        "bytes": facts.nbytes if facts else None,
        "pages": facts.num_pages if facts else None,
        "tier": tier,
        "pinned": state.pinned,
        "running": running,
        "waiting": waiting,
        "requests": state.usage.requests,
        "tokens": state.usage.tokens,
        "last_used": _since_1970(state.last_used),
        "state": "unloading" if state.unload_waiters else state.load_state.value,
        "error": state.error.message if state.error else None,
        "error_code": state.error.code.value if state.error else None,
    }


def _since_1970(moment: float | None) -> float | None:
    """Of time.monotonic(), in seconds, by the clock as it is now."""
    return None if moment is None else round(time.time() - time.monotonic() + moment, 3)
