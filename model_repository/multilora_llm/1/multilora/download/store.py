"""An adapter in an object store, brought into the cache beside the Hub's."""

import contextlib
import logging
import uuid
from hashlib import sha256
from pathlib import Path

from multilora.adapters.files import FILES, NEEDED_FILES, PICKLE_FILE, check_present
from multilora.download.object_store import ObjectStore, StoredFile
from multilora.download.partial_file import PartialFile, check_room, locked
from multilora.download.store_cache import StoreCache
from multilora.download.transfer import Interrupted, Transfer
from multilora.errors import ErrorCode, RequestError

_LOG = logging.getLogger("multilora.download")
_ATTEMPTS = 3  # at one version: an adapter may be replaced while it is read


class StoreDownload:
    """The adapter at one URL."""

    def __init__(self, url: str, transfer: Transfer) -> None:
        self._store = ObjectStore(url, transfer)
        self._cache = StoreCache(url.rstrip("/"))
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
            with contextlib.suppress(RequestError):  # a cache that may only be read serves, too
                self._cache.note_latest(version)
        return complete

    def _look_up(self) -> list[StoredFile]:
        """The adapter's files as they are now."""
        self._store.forget()
        found = {name: self._find(name) for name in FILES}
        files = [file for file in found.values() if file is not None]
        names = {file.name for file in files}
        if not names.issuperset(NEEDED_FILES) and self._store.find(PICKLE_FILE):
            names.add(PICKLE_FILE)
        check_present(self._store.shown, names)
        return files

    def _find(self, name: str) -> StoredFile | None:
        try:
            return self._store.find(name)
        except RequestError as error:
            # without leave to list, S3 says "forbidden" of a file that does not exist
            if error.code is ErrorCode.NOT_FOUND and name not in NEEDED_FILES:
                return None
            raise

    def _fetch_and_look_up(self, files: list[StoredFile], version: str) -> list[StoredFile]:
        """Bring `files`; what the store holds afterwards, which other files may have replaced."""
        try:
            self._fetch(files, version)
        except RequestError as error:
            if error.code is ErrorCode.INVALID_ARG or (current := self._look_up()) == files:
                raise
            return current
        return self._look_up()

    def _fetch(self, files: list[StoredFile], version: str) -> None:
        """Bring all files of a version, going on from what is here of it."""
        folder = self._cache.begin(version)
        sizes = [file.size for file in files]
        self._transfer.begin(None if None in sizes else sum(size or 0 for size in sizes))
        here = sum(path.stat().st_size for path in folder.glob("*"))
        check_room(self._cache.folder, max(0, sum(size or 0 for size in sizes) - here))
        for file in files:
            with PartialFile(folder / file.name) as arriving:
                if file.size is None:
                    arriving.restart()  # nothing tells whether it is whole
                self._store.remote_file(file).fetch(arriving, self._transfer)
        self._transfer.finish()


def _version(files: list[StoredFile]) -> str:
    """A name for exactly these contents; a new one each time if the store cannot tell them."""
    identities = [file.identity or uuid.uuid4().hex for file in files]
    return sha256("\n".join(identities).encode()).hexdigest()[:32]
