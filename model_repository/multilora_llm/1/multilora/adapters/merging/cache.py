"""MergeCache: merged adapters on disk, PEFT folders <HF_HUB_CACHE>/merged-adapters/<digest>/.

Law: a folder under its final name is whole and never changes, so that any process may read it.
"""

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from huggingface_hub import constants

from multilora.adapters.files import NEEDED_FILES, check_room, on_disk

_DRAFT = ".draft-"
_ABANDONED = 86400.0  # seconds: an older draft was left by a process that was killed


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
            os.utime(folder)
        return True

    def add(self, digest: str, files: Mapping[str, bytes]) -> None:
        """Make `files` the folder of `digest`. RequestError (UNAVAILABLE): the disk fails."""
        check_room(self.root, sum(map(len, files.values())))
        draft = self.root / f"{_DRAFT}{uuid.uuid4().hex}"
        try:
            with on_disk(self.root):
                draft.mkdir()
                for name, content in files.items():
                    _write(draft / name, content)
                try:
                    draft.rename(self.folder(digest))
                except OSError:  # another process was faster
                    if not self.touch(digest):
                        raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def prune(self, used_at: Callable[[str], float]) -> list[str]:
        """Remove the folders over the limit → their digests.

        `used_at` tells when an adapter in memory was last used, in seconds since 1970.
        """
        now = time.time()
        last: dict[str, float] = {}
        for path in self._folders():
            if not path.name.startswith("."):
                last[path.name] = max(used_at(path.name), _modified(path))
            elif path.name.startswith(_DRAFT) and now - _modified(path) > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
        doomed = sorted(last, key=last.__getitem__)[: -self._limit]
        for digest in doomed:
            draft = self.root / f"{_DRAFT}{uuid.uuid4().hex}"
            with contextlib.suppress(OSError):
                self.folder(digest).rename(draft)  # so that no reader sees half a folder
            shutil.rmtree(draft, ignore_errors=True)
        return doomed

    def _folders(self) -> list[Path]:
        try:
            return [path for path in self.root.iterdir() if path.is_dir()]
        except OSError:
            return []


def _modified(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # so that a power cut does not shorten the file
