"""MergeCache: merged adapters on disk, PEFT folders <HF_HUB_CACHE>/merged-adapters/<digest>/.

Laws: a folder under its final name is whole and never changes, so that any process may read it.
Folders are in the order of their use by their mtime, also when the clock is set back.
"""

import contextlib
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from huggingface_hub import constants

from multilora.adapters.files import NEEDED_FILES, check_room, on_disk

_DRAFT = ".draft-"
_ABANDONED = 86400 * 10**9  # ns: an older draft that nobody holds is of a process that was killed


class MergeCache:
    """Any thread. `prune` keeps the `limit` folders that were used last."""

    def __init__(self, limit: int) -> None:
        self.root = Path(constants.HF_HUB_CACHE).expanduser().absolute() / "merged-adapters"
        self._limit = limit

    def folder(self, digest: str) -> Path:
        return self.root / digest

    def touch(self, digest: str) -> bool:
        """Note a use of the folder of `digest`; False: there is no such folder."""
        folder = self.folder(digest)
        if not all((folder / name).is_file() for name in NEEDED_FILES):
            return False
        with contextlib.suppress(OSError):  # a read-only cache serves, too
            now = self._after_all()
            os.utime(folder, ns=(now, now))
        return True

    def add(self, digest: str, files: Mapping[str, bytes]) -> None:
        """Make `files` the folder of `digest`. RequestError (UNAVAILABLE): the disk fails."""
        check_room(self.root, sum(map(len, files.values())))
        draft = self.root / f"{_DRAFT}{uuid.uuid4().hex}"
        try:
            with on_disk(self.root):
                draft.mkdir()
                with _held(draft):
                    for name, content in files.items():
                        _write(draft / name, content)
                    try:
                        draft.rename(self.folder(digest))
                    except OSError:  # another process was faster
                        if not self.touch(digest):
                            raise
                self.touch(digest)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def prune(self, unused: Callable[[str], float]) -> list[str]:
        """Remove the folders over the limit → their digests.

        `unused` tells for how many seconds an adapter has not been used, inf when that was before
        it was read from its folder.
        """
        now = self._after_all()
        last: dict[str, float] = {}
        for path in self._folders():
            if not path.name.startswith("."):
                last[path.name] = max(now - unused(path.name) * 1e9, _modified(path))
            elif path.name.startswith(_DRAFT) and _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
        doomed = sorted(last, key=last.__getitem__)[: -self._limit]
        for digest in doomed:
            draft = self.root / f"{_DRAFT}{uuid.uuid4().hex}"
            with contextlib.suppress(OSError):
                self.folder(digest).rename(draft)  # so that no reader sees half a folder
            shutil.rmtree(draft, ignore_errors=True)
        return doomed

    def _after_all(self) -> int:
        """Now in ns, or later than each use of a folder so far, if the clock has been set back."""
        uses = (_modified(path) for path in self._folders() if not path.name.startswith("."))
        return max(time.time_ns(), max(uses, default=0) + 1)

    def _folders(self) -> list[Path]:
        try:
            return [path for path in self.root.iterdir() if path.is_dir()]
        except OSError:
            return []


def _modified(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock the folder → whether nobody else holds it, nor may do so unseen."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        ours = False
        with contextlib.suppress(OSError):  # held, or a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = True
        yield ours
    finally:
        os.close(descriptor)


def _is_abandoned(draft: Path) -> bool:
    """The age alone would not do: the clock may have been set forward."""
    with contextlib.suppress(OSError), _held(draft) as ours:
        return ours and time.time_ns() - _modified(draft) > _ABANDONED
    return False


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # so that a power cut does not shorten the file
