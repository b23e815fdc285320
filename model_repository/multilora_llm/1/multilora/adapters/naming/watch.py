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

_LOG = logging.getLogger(__name__)
_SHARE = 0.02  # of one core, which the scans take at most
_LONGEST_PAUSE = 30.0  # seconds


class FolderChanges(NamedTuple):
    """Relative names of adapters."""

    added: tuple[str, ...]
    replaced: tuple[str, ...]
    removed: tuple[str, ...]


class AdapterWatch:
    """A thread that calls `report` with what has changed since this object was made.

    The directory is scanned every `seconds`, or less often when it is so large that the scans would
    take more than 2 % of a core. `in_memory` names the directory's adapters that are in memory: a
    request may have found one between two scans, and its removal is reported too.
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
        self._closed = threading.Event()
        self._thread = background_thread("adapter-watch", self._loop)
        with self._failures_logged():
            self._reported = self._latest = folders.scan()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread. A scan or a report in progress may go on after this returns."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _loop(self) -> None:
        pause = self._seconds
        while not self._closed.wait(pause):
            start = time.thread_time()
            with self._failures_logged():
                self._look()
            spent = time.thread_time() - start
            pause = max(self._seconds, min(spent / _SHARE, _LONGEST_PAUSE))

    def _look(self) -> None:
        before, now = self._latest, self._folders.scan()
        self._latest = now
        passing = [name for name in self._in_memory() if name not in before and name not in now]
        if now == before == self._reported and not passing:
            return
        changes = _changes(self._reported, before, now, passing)
        if any(changes):
            for name in (*changes.added, *changes.replaced):
                self._reported[name] = now[name]
            for name in changes.removed:
                self._reported.pop(name, None)
            self._report(changes)

    @contextlib.contextmanager
    def _failures_logged(self):
        """Log the first of several failures in a row; no failure ends the thread."""
        try:
            yield
            self._is_failing = False
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
    names = [
        name
        for name in sorted(reported.keys() | now.keys())
        if before.get(name) == now.get(name) != reported.get(name)
    ]
    return FolderChanges(
        added=tuple(name for name in names if name not in reported),
        replaced=tuple(name for name in names if name in reported and name in now),
        removed=tuple(dict.fromkeys([*(name for name in names if name not in now), *passing])),
    )
