"""StoreDownload: an adapter of an object store, brought into a cache beside the Hub's.

The cache of a URL is the folder <HF_HUB_CACHE>/object-stores/<hash of the URL>/

    versions/<version>/     a complete copy of one version, which appears by one rename
    incomplete/<version>/   the files of a version that is still arriving
    latest                  the version that was current when the store was last asked
"""

import contextlib
import logging
import shutil
import uuid
from collections.abc import Container
from hashlib import sha256
from pathlib import Path

from huggingface_hub import constants

from multilora.adapters.files import (
    CONFIG_FILE,
    FILES,
    INDEX_FILES,
    WEIGHTS_FILE,
    check_present,
    check_room,
    on_disk,
    weight_files,
)
from multilora.download.object_store import ObjectStore, StoredFile
from multilora.download.partial_file import PartialFile, locked, write_atomically
from multilora.download.transfer import Interrupted, Transfer
from multilora.errors import ErrorCode, RequestError
from multilora.json_fields import json_object

_LOG = logging.getLogger("multilora.download")
_ATTEMPTS = 3  # to read one version whole: an adapter may be replaced meanwhile
_MOST_INDEX = 8 << 20  # bytes


class StoreDownload:
    """The adapter at one URL."""

    def __init__(self, url: str, transfer: Transfer) -> None:
        self._store = ObjectStore(url, transfer)
        self._cache = _StoreCache(url.rstrip("/"))
        self._transfer = transfer

    def folder(self) -> Path:
        """A complete copy, up to date if the store can be reached; raises RequestError."""
        try:
            files = self._look_up()
        except Interrupted as error:
            if latest := self._cache.latest():
                _LOG.warning("%s; serving the copy in the cache", error.message)
                return latest
            raise
        if complete := self._complete(files):
            return complete
        with locked(self._cache.lock, self._transfer):
            for _ in range(_ATTEMPTS):
                if complete := self._complete(files):
                    return complete
                version = _version(files)
                current = self._fetch_and_look_up(files, version)
                if current == files:
                    return self._cache.publish(version)
                files = current
        raise Interrupted(f"{self._store.shown} keeps changing while it is read; try again later")

    def _complete(self, files: list[StoredFile]) -> Path | None:
        version = _version(files)
        complete = self._cache.complete(version)
        if complete:
            with contextlib.suppress(RequestError):  # a read-only cache serves, too
                self._cache.note_latest(version)
        return complete

    def _look_up(self) -> list[StoredFile]:
        """The adapter's files as they are now."""
        self._store.forget()
        found = {name: self._find(name) for name in FILES}
        if found[WEIGHTS_FILE] is None:
            found |= {name: self._find(name) for name in self._shards()}
        files = [file for file in found.values() if file is not None]
        names = {file.name for file in files}
        check_present(self._store.shown, names, self._store.find)
        return files

    def _shards(self) -> list[str]:
        """The names of shards that an index tells of: not every store can be listed."""
        for index in filter(None, map(self._find, INDEX_FILES)):
            fields = json_object(self._store.read(index, _MOST_INDEX), index.name, "save it again")
            named = fields.get("weight_map")
            if isinstance(named, dict) and (shards := weight_files(map(str, named.values()))):
                return sorted(set(shards))
        return []

    def _find(self, name: str) -> StoredFile | None:
        try:
            return self._store.find(name)
        except RequestError as error:
            # To a user who may not list, S3 says "forbidden" of a file that does not exist.
            if error.code is ErrorCode.NOT_FOUND and name != CONFIG_FILE:
                return None
            raise

    def _fetch_and_look_up(self, files: list[StoredFile], version: str) -> list[StoredFile]:
        """Bring `files` → the files that the store holds afterwards, which may be newer."""
        try:
            self._fetch(files, version)
        except RequestError as error:
            if error.code is ErrorCode.INVALID_ARG or (current := self._look_up()) == files:
                raise
            return current
        return self._look_up()

    def _fetch(self, files: list[StoredFile], version: str) -> None:
        """Bring all files of a version, going on from what has arrived of them before."""
        folder = self._cache.begin(version)
        sizes = [file.size for file in files]
        self._transfer.begin(None if None in sizes else sum(size or 0 for size in sizes))
        here = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        check_room(self._cache.folder, max(0, sum(size or 0 for size in sizes) - here))
        for file in files:
            with on_disk(folder):
                (folder / file.name).parent.mkdir(exist_ok=True)
            with PartialFile(folder / file.name) as arriving:
                if file.size is None:
                    arriving.restart()  # nothing would tell whether the file is whole
                self._store.remote_file(file).fetch(arriving, self._transfer)
        self._transfer.finish()


class _StoreCache:
    """The cached versions of the adapter at one URL; a version is a hexadecimal name."""

    def __init__(self, url: str) -> None:
        key = sha256(url.encode()).hexdigest()[:32]
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
        """Make incomplete(version), and remove what has arrived of other versions."""
        with on_disk(self.folder):
            self.incomplete(version).mkdir(parents=True, exist_ok=True)
            for folder in (self.folder / "incomplete").iterdir():
                if folder.name != version:
                    shutil.rmtree(folder, ignore_errors=True)
        return self.incomplete(version)

    def publish(self, version: str) -> Path:
        """Make incomplete(version), whose files are whole, the complete copy of the version."""
        folder = self.folder / "versions" / version
        before = self.latest()  # which a reader may still have open
        with on_disk(self.folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            self.incomplete(version).replace(folder)
        self.note_latest(version)
        self._tidy(keep=(folder, before))
        return folder

    def note_latest(self, version: str) -> None:
        if self.latest() != self.folder / "versions" / version:
            write_atomically(self.folder / "latest", version)

    def _tidy(self, keep: Container[Path | None]) -> None:
        """Drop the other versions."""
        for folder in list((self.folder / "versions").iterdir()):
            if folder in keep:
                continue
            doomed = folder.with_name(f"dropped-{uuid.uuid4().hex}")
            with contextlib.suppress(OSError):
                folder.rename(doomed)  # so that no reader sees half a folder
                shutil.rmtree(doomed)


def _version(files: list[StoredFile]) -> str:
    """A name for exactly these contents; always a new one if the store cannot tell them apart."""
    identities = [file.identity or uuid.uuid4().hex for file in files]
    return sha256("\n".join(identities).encode()).hexdigest()[:32]
