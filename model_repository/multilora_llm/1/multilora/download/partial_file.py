"""PartialFile: a file that is still arriving, and the disk on which it arrives.

Law: a file under its final name is whole. A partial file has a name of its own, stays for the next
attempt to go on from, and is removed when the disk is full or fails.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from multilora.adapters.files import on_disk
from multilora.download.transfer import Interrupted, Retries, Transfer
from multilora.errors import ErrorCode, RequestError

_POLL_SECONDS = 0.05


class PartialFile:
    """What has arrived of one file: `size` bytes at `path`. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with on_disk(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.size = os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self) -> "PartialFile":
        return self

    def __exit__(self, *_: object) -> None:
        with self._removed_by_errors():  # network file systems may tell only now
            os.close(self._fd)

    def write(self, chunk: bytes) -> None:
        with self._removed_by_errors():
            left = memoryview(chunk)
            while left:
                left = left[os.write(self._fd, left) :]
        self.size += len(chunk)

    def restart(self) -> None:
        """Forget what has arrived."""
        with on_disk(self.path.parent):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
        self.size = 0

    def settle(self) -> None:
        """Return once the bytes are on the disk itself: a power cut must not shorten the file."""
        with self._removed_by_errors():
            os.fsync(self._fd)

    @contextlib.contextmanager
    def _removed_by_errors(self) -> Iterator[None]:
        """An error of the disk removes the file: nobody knows which bytes it holds, and others may
        need the room."""
        try:
            with on_disk(self.path.parent):
                yield
        except RequestError:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
            raise


def write_atomically(path: Path, content: str) -> None:
    """Write the file so that readers see either the old content or the new one."""
    with on_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}-{time.monotonic_ns()}.tmp")
        try:
            draft.write_text(content)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, transfer: Transfer) -> Iterator[None]:
    """Let one thread of one process in at a time; waiting counts as time of the `transfer`.

    Where a network file system ignores flock(2), two processes may fetch the same file: then the
    check of the arrived file decides, and one of them tries again.
    """
    with on_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                transfer.pause(_POLL_SECONDS)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(fd)


class Incoming(NamedTuple):
    """Bytes from position `start` to the end of the file."""

    start: int
    chunks: Iterator[bytes]


@dataclass(frozen=True)
class RemoteFile:
    """`size` in bytes as announced, None when none was.

    `read_from(position)` may answer with Incoming from 0 when the other side does not understand
    positions. `read_from` and the chunks raise Interrupted for what the next attempt may not meet
    again, and RequestError for the rest.
    """

    name: str
    size: int | None
    read_from: Callable[[int], AbstractContextManager[Incoming]]

    def fetch(self, partial: PartialFile, transfer: Transfer) -> None:
        """Go on from what `partial` holds until the file is whole; counted in `transfer`."""
        transfer.count(partial.size)
        if self.size is not None and partial.size > self.size:
            self._restart(partial, transfer)
        retries = Retries(transfer)
        while self.size is None or partial.size < self.size:
            try:
                self._receive(partial, transfer)
                break
            except Interrupted as error:
                retries.wait(error)
            except RequestError as error:
                if error.code is ErrorCode.INVALID_ARG:  # too large: nothing to go on from
                    partial.restart()
                raise
        partial.settle()

    def _receive(self, partial: PartialFile, transfer: Transfer) -> None:
        with self.read_from(partial.size) as (start, chunks):
            if start != partial.size:
                self._restart(partial, transfer)
            for chunk in chunks:
                if self.size is not None and partial.size + len(chunk) > self.size:
                    self._restart(partial, transfer)
                    raise RequestError(
                        ErrorCode.UNAVAILABLE,
                        f"{self.name} is longer than the {self.size} bytes that were announced; "
                        "upload it again, or try again later",
                    )
                transfer.count(len(chunk))
                partial.write(chunk)
        if self.size is not None and partial.size < self.size:
            raise Interrupted(
                f"{self.name} ended after {partial.size} of {self.size} bytes; try again"
            )

    def _restart(self, partial: PartialFile, transfer: Transfer) -> None:
        transfer.count(-partial.size)
        partial.restart()
