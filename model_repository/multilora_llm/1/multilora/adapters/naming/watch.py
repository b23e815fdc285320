"""Watches the adapters directory and reports which adapters were added, replaced or removed.

Law: a change is reported once two scans in a row have seen the same files, so that a folder into
which somebody is copying is left alone until it is complete.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from multilora.adapters.background_thread import background_thread
from multilora.adapters.naming.folders import AdapterFolders, Signature
from multilora.errors import RequestError

_LOG = logging.getLogger(__name__)
_SHARE = 0.02  # of one core, which the scans take at most
_BURST_SECONDS = 0.003  # of one core at a time: scans and passes share the interpreter's lock


class FolderChanges(NamedTuple):
    """Relative names of adapters."""

    added: tuple[str, ...]
    replaced: tuple[str, ...]
    removed: tuple[str, ...]


class _Closed(Exception):
    """The watch has been closed in the middle of a scan."""


class AdapterWatch:
    """A thread that calls `report` with what has changed since this object was made.

    The directory is scanned every `seconds`, or more slowly when it is so large that the scans
    would take more than 2 % of a core. `in_memory` names the directory's adapters that are in
    memory: a request may have found one between two scans, and its removal is reported too.
    """

    def __init__(
        self,
        folders: AdapterFolders,
        report: Callable[[FolderChanges], None],
        seconds: float = 0.5,
        in_memory: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._folders = folders
        self._report = report
        self._seconds = seconds
        self._in_memory = in_memory
        self._reported: dict[str, Signature] = {}
        self._latest: dict[str, Signature] = {}
        self._is_failing = False
        self._began = 0.0  # time.thread_time() at the begin of a scan, or since the latest pause
        self._closed = threading.Event()
        self._thread = background_thread("adapter-watch", self._loop)
        with self._failures_logged():
            self._latest = folders.scan()
            self._reported = dict(self._latest)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread. A report in progress may go on after this returns."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _loop(self) -> None:
        pause = self._seconds
        with contextlib.suppress(_Closed):
            while not self._closed.wait(pause):
                self._began = time.thread_time()
                with self._failures_logged():
                    self._look()
                pause = max(self._seconds, self._spent() / _SHARE)

    def _spent(self) -> float:
        return time.thread_time() - self._began

    def _pace(self) -> None:
        """Sleep if the scan has run for a burst; _Closed when there is no need to go on."""
        if (spent := self._spent()) > _BURST_SECONDS:
            if self._closed.wait(spent / _SHARE):
                raise _Closed
            self._began = time.thread_time()

    def _look(self) -> None:
        before, now = self._latest, self._folders.scan(self._pace)
        self._latest = now
        passing = [name for name in self._in_memory() if name not in before and name not in now]
        if now == before == self._reported and not passing:
            return
        changes = _changes(self._reported, before, now, passing)
        # A scan may take minutes: what it has not seen may be there by now.
        removed = tuple(name for name in changes.removed if not self._stands(name))
        changes = changes._replace(removed=removed)
        if any(changes):
            for name in (*changes.added, *changes.replaced):
                self._reported[name] = now[name]
            for name in changes.removed:
                self._reported.pop(name, None)
            self._report(changes)

    def _stands(self, name: str) -> bool:
        with contextlib.suppress(RequestError):
            return self._folders.find(name) is not None
        return False

    @contextlib.contextmanager
    def _failures_logged(self):
        """Log the first of several failures in a row; no failure ends the thread."""
        try:
            yield
            self._is_failing = False
        except _Closed:
            raise
        except Exception:
            if not self._is_failing:
                _LOG.exception("watching the adapters directory %s", self._folders.root)
            self._is_failing = True


def _changes(
    reported: dict[str, Signature],
    before: dict[str, Signature],
    now: dict[str, Signature],
    passing: list[str],
) -> FolderChanges:
    """What differs from `reported` and was the same in the last two scans.

    `passing` are adapters that neither scan has seen, and that are in memory all the same.
    """
    names = sorted(
        name
        for name in reported.keys() | now.keys()
        if before.get(name) == now.get(name) != reported.get(name)
    )
    return FolderChanges(
        added=tuple(name for name in names if name not in reported),
        replaced=tuple(name for name in names if name in reported and name in now),
        removed=tuple(dict.fromkeys([*(name for name in names if name not in now), *passing])),
    )
