"""Adapters of object stores on this machine: <HF_HUB_CACHE>/object-stores/<hash of the URL>/

versions/<version>/     a complete copy of one version; it appears by one rename
incomplete/<version>/   files of a version that is still arriving
latest                  the version that was current when the store was last asked
"""

import contextlib
import hashlib
import shutil
import uuid
from pathlib import Path

from huggingface_hub import constants

from multilora.download.partial_file import on_disk, write_atomically

_KEPT_VERSIONS = 2  # the current one, and the one that may still be being read


class StoreCache:
    """The cached versions of the adapter at one URL; a version is a hexadecimal name."""

    def __init__(self, url: str) -> None:
        key = hashlib.sha256(url.encode()).hexdigest()[:32]
        self.folder = Path(constants.HF_HUB_CACHE) / "object-stores" / key
        self.lock = self.folder / "lock"

    def latest(self) -> Path | None:
        """The complete copy of the version that was last seen."""
        with contextlib.suppress(OSError):
            return self.complete((self.folder / "latest").read_text().strip())
        return None

    def complete(self, version: str) -> Path | None:
        folder = self.folder / "versions" / version
        return folder if version.isalnum() and folder.is_dir() else None

    def incomplete(self, version: str) -> Path:
        return self.folder / "incomplete" / version

    def begin(self, version: str) -> Path:
        """incomplete(version), and nothing of any other version."""
        with on_disk(self.folder):
            self.incomplete(version).mkdir(parents=True, exist_ok=True)
            for folder in (self.folder / "incomplete").iterdir():
                if folder.name != version:
                    shutil.rmtree(folder, ignore_errors=True)
        return self.incomplete(version)

    def publish(self, version: str) -> Path:
        """All files of incomplete(version) are whole: they are the complete copy from now on."""
        folder = self.folder / "versions" / version
        with on_disk(self.folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            self.incomplete(version).replace(folder)
        self.note_latest(version)
        self._tidy()
        return folder

    def note_latest(self, version: str) -> None:
        if self.latest() != self.folder / "versions" / version:
            write_atomically(self.folder / "latest", version)

    def _tidy(self) -> None:
        """Drop older versions."""
        versions = sorted(
            (self.folder / "versions").iterdir(), key=lambda path: path.stat().st_ctime_ns
        )
        for folder in versions[:-_KEPT_VERSIONS]:
            doomed = folder.with_name(f"dropped-{uuid.uuid4().hex}")
            with contextlib.suppress(OSError):
                folder.rename(doomed)  # never seen half removed
                shutil.rmtree(doomed)
