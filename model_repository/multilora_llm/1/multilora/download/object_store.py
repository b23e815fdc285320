"""ObjectStore: the files of an adapter at a URL of fsspec (s3://, gs://, https://, memory://, ...).

Credentials and end points are the drivers' own settings: AWS_*, GOOGLE_APPLICATION_CREDENTIALS,
FSSPEC_*, ~/.config/fsspec.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import fsspec
from fsspec.core import url_to_fs

from multilora.adapters.files import too_large
from multilora.download.partial_file import Incoming, RemoteFile
from multilora.download.transfer import Interrupted, Transfer
from multilora.errors import ErrorCode, RequestError, invalid

_CHUNK = 4 << 20
_HTTP = ("http", "https")
_REFUSED = ("file", "local")
# Fields of a file's description that change with its content, as the drivers name them.
_IDENTITY = (
    "ETag", "etag", "md5Hash", "crc32c", "content_md5", "Content-MD5", "Digest", "checksum",
    "generation", "versionId", "VersionId", "version_id", "LastModified", "last_modified",
    "Last-Modified", "mtime", "modified", "updated", "created",
)  # fmt: skip

T = TypeVar("T")


class StoredFile(NamedTuple):
    """`identity` differs between two contents; None: the store offers no field that would."""

    name: str
    size: int | None
    identity: str | None


class ObjectStore:
    """The folder at `url`; nothing is asked of it past the limits of `transfer`."""

    def __init__(self, url: str, transfer: Transfer) -> None:
        self._url = url.rstrip("/")
        self.shown = re.sub(r"//[^/@]*@", "//", self._url)  # without a user and password
        self._transfer = transfer
        self._scheme = _checked_scheme(url, self.shown)
        self._files, self._root = self._open()

    def find(self, name: str) -> StoredFile | None:
        """The file `name` as it is now; None: there is none."""
        try:
            info: dict[str, Any] = self._ask(partial(self._files.info, self._path(name)))
        except RequestError as error:
            if error.code is ErrorCode.NOT_FOUND and not isinstance(error, _Refused):
                return None
            raise
        # Some web servers answer a path that does not exist with a page.
        if info.get("type") == "directory" or info.get("mimetype") == "text/html":
            return None
        marks = {field: str(info[field]) for field in _IDENTITY if info.get(field)}
        size = info.get("size")
        text = json.dumps([name, size, marks], sort_keys=True)
        return StoredFile(name, size, sha256(text.encode()).hexdigest() if marks else None)

    def remote_file(self, file: StoredFile) -> RemoteFile:
        label = f"{self.shown}/{file.name}"
        return RemoteFile(label, file.size, partial(self._read, self._path(file.name)))

    def read(self, file: StoredFile, most: int) -> bytes:
        """The content of a file; RequestError (INVALID_ARG): it has more than `most` bytes."""
        content = bytearray()
        with self._read(self._path(file.name), 0) as incoming:
            for chunk in incoming.chunks:
                content += chunk
                if len(content) > most:
                    raise too_large(file.name, most)
        return bytes(content)

    def forget(self) -> None:
        """Drop the driver's listings, which may be out of date."""
        self._files.invalidate_cache()

    @contextlib.contextmanager
    def _read(self, path: str, position: int) -> Iterator[Incoming]:
        file, start, first = self._ask(partial(self._start, path, position))
        try:
            yield Incoming(start, self._chunks(file, first))
        finally:
            with contextlib.suppress(Exception):  # nothing was written that could be lost
                file.close()

    def _start(self, path: str, position: int) -> tuple[Any, int, bytes]:
        """Open the file at `position`, or else at its start → (file, that position, first bytes)"""
        file: Any
        if position:
            file = self._files.open(path, "rb", cache_type="none")
            try:
                file.seek(position)
                return file, position, file.read(_CHUNK)
            except ValueError:  # this file can only be read from the beginning
                file.close()
        options = {"block_size": 0} if self._scheme in _HTTP else {"cache_type": "none"}
        file = self._files.open(path, "rb", **options)
        return file, 0, file.read(_CHUNK)

    def _chunks(self, file: Any, chunk: bytes) -> Iterator[bytes]:
        while chunk:
            yield chunk
            chunk = self._ask(partial(file.read, _CHUNK))

    def _ask(self, function: Callable[[], T]) -> T:
        try:
            return self._transfer.call(function)
        except Exception as error:
            raise _store_error(self.shown, error) from None

    def _open(self) -> tuple[fsspec.AbstractFileSystem, str]:
        options: dict[str, Any] = {}
        if self._scheme in _HTTP:  # a compressed answer has no positions to go on from
            options = {"headers": {"Accept-Encoding": "identity"}}
        try:
            return self._transfer.call(partial(url_to_fs, self._url, **options))
        except ImportError as error:
            raise invalid(f"{self.shown}: {_driver_hint(self._scheme, error)}") from None
        except RequestError:
            raise
        except Exception as error:
            raise invalid(f"{self.shown} cannot be opened ({error}); check the URL") from None

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


class _Refused(RequestError):
    """The store can be reached, and its credentials do not let us read."""


def _checked_scheme(url: str, shown: str) -> str:
    scheme = url.partition("://")[0].lower()
    if "::" in url:
        raise invalid(f"{shown}: chained URLs (::) are not served; give one plain URL")
    if scheme in _REFUSED:
        raise invalid(f"{shown}: give a folder of this machine as a path, /folder")
    if scheme in _HTTP and (urlsplit(url).query or urlsplit(url).fragment):
        raise invalid(
            f"{shown.partition('?')[0].partition('#')[0]}: the URL of an adapter is that of its "
            "folder, without ? and #"
        )
    if ".." in url.split("/"):
        raise invalid(f"{shown}: '..' is not allowed in a URL; give the folder itself")
    if scheme not in fsspec.available_protocols():
        raise invalid(f"{shown}: {scheme}:// is no scheme that fsspec knows; check the URL")
    return scheme


def _driver_hint(scheme: str, error: ImportError) -> str:
    packages = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp"}
    packages |= {"https": "aiohttp", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}
    if package := packages.get(scheme):
        return f"{scheme}:// needs a driver that is not installed; pip install {package}"
    return f"{scheme}:// needs a driver that is not installed ({error}); install it"


def _store_error(where: str, error: Exception) -> RequestError:
    """NOT_FOUND when there is no such file or it may not be read; Interrupted for everything that
    the next attempt may not meet again."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        # fsspec's http raises FileNotFoundError for all failures, with the failure as its cause.
        return _store_error(where, _as_exception(error.__cause__))
    status = getattr(error, "status", None)  # of an HTTP answer
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return RequestError(ErrorCode.NOT_FOUND, f"{where}: there is no such file; check the URL")
    if isinstance(error, PermissionError) or status in (401, 403):
        return _Refused(
            ErrorCode.NOT_FOUND,
            f"{where}: the store refuses to read it; check the URL and the store's credentials",
        )
    return Interrupted(
        f"{where} cannot be read ({type(error).__name__}: {_safe(error)}); check the network and "
        "the store's credentials, then try again"
    )


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(str(error))


def _safe(error: Exception) -> str:
    """What the error says, in one line and without user and password."""
    return re.sub(r"//[^/@\s]*@", "//", " ".join(str(error).split()))[:300]
