"""HubDownload: brings an adapter of the Hugging Face Hub into the Hub cache; and the Hub's errors.

HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_HUB_ETAG_TIMEOUT and
HF_HUB_DOWNLOAD_TIMEOUT are huggingface_hub's own settings.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from multilora.adapters.files import (
    DISK_FULL,
    FILES,
    WEIGHTS_FILE,
    check_present,
    check_room,
    weight_files,
)
from multilora.download.hub_cache import HubCache, is_commit, is_revision
from multilora.download.partial_file import Incoming, PartialFile, RemoteFile, locked
from multilora.download.transfer import Interrupted, Retries, Transfer
from multilora.errors import ErrorCode, RequestError

_SET_TOKEN = "set HF_TOKEN (for an adapter, a request may send adapter_token)"
_UNREACHABLE = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, then try again"
_LOG = logging.getLogger("multilora.download")

T = TypeVar("T")


class _HubFile(NamedTuple):
    name: str
    etag: str
    size: int | None


class HubDownload:
    """One revision ("" is the main branch) of one repository; `token` "" is the server's own."""

    def __init__(self, repo_id: str, revision: str, transfer: Transfer, token: str = "") -> None:
        self._where = f"{repo_id}@{revision}" if revision else repo_id
        self._repo_id = repo_id
        self._revision = revision or constants.DEFAULT_REVISION
        self._transfer = transfer
        self._token = token or None

    def folder(self) -> Path:
        """The snapshot folder, up to date if the Hub can be reached; raises RequestError."""
        if not is_revision(self._revision):
            raise RequestError(
                ErrorCode.NOT_FOUND,
                f"{self._where}: this is no name of a branch, tag or commit; check the revision",
            )
        try:
            cache = HubCache(self._repo_id)
        except ValueError as error:  # HFValidationError: no repository can have this id
            raise hub_error(self._where, error) from None
        known = cache.commit(self._revision)
        if is_commit(self._revision) and cache.is_complete(self._revision):
            return cache.snapshot(self._revision)  # a commit never changes
        if constants.is_offline_mode():
            if known and cache.is_usable(known):
                return cache.snapshot(known)
            raise _not_cached(self._where)
        try:
            commit, names = self._look_up(retry=not (known and cache.is_usable(known)))
        except Interrupted as error:
            if not (known and cache.is_usable(known)):
                raise
            _LOG.warning("%s; serving the copy in the Hub cache", error.message)
            return cache.snapshot(known)
        check_present(self._where, names, names.__contains__)
        wanted = [name for name in FILES if name in names and name != WEIGHTS_FILE]
        wanted += weight_files(names)
        if not all(cache.has(commit, name) for name in wanted):
            with locked(cache.lock, self._transfer):
                self._bring(cache, commit, wanted)
        with contextlib.suppress(RequestError):  # a read-only cache serves, too
            cache.note_absent(commit, [name for name in FILES if name not in names])
            cache.note_commit(self._revision, commit)
        return cache.snapshot(commit)

    def _look_up(self, retry: bool) -> tuple[str, list[str]]:
        """The commit of the revision and the names of its files."""
        api = HfApi(endpoint=constants.ENDPOINT, token=self._token)
        info = self._ask(
            lambda timeout: api.model_info(self._repo_id, revision=self._revision, timeout=timeout),
            retry,
        )
        if not info.sha or not is_commit(info.sha):
            raise Interrupted(f"{self._where}: the Hub names no commit; check HF_ENDPOINT")
        return info.sha, [file.rfilename for file in info.siblings or []]

    def _bring(self, cache: HubCache, commit: str, wanted: list[str]) -> None:
        files = [self._describe(name, commit) for name in wanted if not cache.has(commit, name)]
        missing = [file for file in files if not cache.blob(file.etag).is_file()]
        if missing:
            sizes = [file.size for file in missing]
            self._transfer.begin(None if None in sizes else sum(size or 0 for size in sizes))
            check_room(cache.folder, sum(self._to_come(cache, file) for file in missing))
            for file in missing:
                self._fetch(cache, commit, file)
            self._transfer.finish()
        for file in files:
            cache.link(commit, file.name, file.etag)

    def _describe(self, name: str, commit: str) -> _HubFile:
        url = self._url(name, commit)
        metadata = self._ask(
            lambda timeout: get_hf_file_metadata(url, token=self._token, timeout=timeout)
        )
        if not metadata.etag:
            raise Interrupted(f"{self._where}: {name} has no etag; check HF_ENDPOINT")
        return _HubFile(name, metadata.etag, metadata.size)

    def _fetch(self, cache: HubCache, commit: str, file: _HubFile) -> None:
        blob = cache.blob(file.etag)
        if blob.is_file():  # two files of the same content
            return
        label = f"{self._where}: {file.name}"
        remote = RemoteFile(label, file.size, partial(self._read, self._url(file.name, commit)))
        with PartialFile(cache.partial(file.etag)) as arriving:
            resumed = arriving.size > 0
            remote.fetch(arriving, self._transfer)
            if resumed and not cache.is_intact(arriving, file.etag):
                self._transfer.count(-arriving.size)  # the first part was of another file
                arriving.restart()
                remote.fetch(arriving, self._transfer)
            cache.add_blob(arriving, file.etag)

    def _to_come(self, cache: HubCache, file: _HubFile) -> int:
        partial = cache.partial(file.etag)
        here = partial.stat().st_size if partial.is_file() else 0
        return max(0, (file.size or 0) - here)

    @contextlib.contextmanager
    def _read(self, url: str, position: int) -> Iterator[Incoming]:
        """The bytes as they come from the socket, without any compression."""
        headers = build_hf_headers(token=self._token) | {"Accept-Encoding": "identity"}
        if position:
            headers["Range"] = f"bytes={position}-"
        client = get_session()
        timeout = min(constants.HF_HUB_DOWNLOAD_TIMEOUT, self._transfer.remaining())
        request = client.build_request("GET", url, headers=headers, timeout=timeout)
        with contextlib.ExitStack() as stack:
            try:
                response = self._transfer.call(
                    lambda: client.send(request, stream=True), too_late=lambda late: late.close()
                )
                stack.callback(response.close)
                hf_raise_for_status(response)
            except Exception as error:
                raise hub_error(self._where, error) from None
            start = position if response.status_code == 206 else 0
            yield Incoming(start, self._chunks(response.iter_raw()))

    def _chunks(self, raw: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from raw
        except Exception as error:  # of the HTTP library: reset, cut short, silent for too long
            raise hub_error(self._where, error) from None

    def _ask(self, request: Callable[[float], T], retry: bool = True) -> T:
        """request(timeout in seconds), repeated while the Hub cannot be reached or breaks off."""
        retries = Retries(self._transfer)
        while True:
            timeout = min(constants.HF_HUB_ETAG_TIMEOUT, self._transfer.remaining())
            try:
                return self._transfer.call(partial(request, timeout))
            except Exception as error:
                failure = hub_error(self._where, error)
            if not retry or not isinstance(failure, Interrupted):
                raise failure
            retries.wait(failure)

    def _url(self, name: str, commit: str) -> str:
        return hf_hub_url(self._repo_id, name, revision=commit, endpoint=constants.ENDPOINT)


def hub_error(where: str, error: Exception) -> RequestError:
    """What an error of huggingface_hub means to the user; `where` is `org/name@revision`.

    Interrupted for what the next attempt may not meet again.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, GatedRepoError):
        return _not_found(f"{where} on the Hub is gated: accept its terms and {_SET_TOKEN}")
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return _not_found(
            f"{where} is neither a local folder nor a Hub repository that can be read; check the "
            f"id, and if it is private {_SET_TOKEN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return _not_found(f"{where}: the Hub repository has no such revision; check the revision")
    if isinstance(error, LocalEntryNotFoundError):
        return _not_cached(where)
    if isinstance(error, EntryNotFoundError):
        return _not_found(
            f"{where}: a file is missing on the Hub ({_first_line(error)}); check the id and the "
            "revision"
        )
    if isinstance(error, HfHubHTTPError):
        return _status_error(where, error.response.status_code, error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return RequestError(
            ErrorCode.UNAVAILABLE,
            f"{where}: the disk of the Hub cache {constants.HF_HUB_CACHE} is full; free some of "
            "it, or set HF_HUB_CACHE to another folder",
        )
    return Interrupted(f"{where}: the Hub cannot be reached ({error!r}); {_UNREACHABLE}")


def _not_cached(where: str) -> RequestError:
    return Interrupted(
        f"{where} is not in the Hub cache and the Hub cannot be reached; {_UNREACHABLE}"
    )


def _status_error(where: str, status: int, error: Exception) -> RequestError:
    if status in (401, 403, 407):
        return _not_found(
            f"{where}: the Hub refuses the request (HTTP {status}); check HF_TOKEN and what it "
            "may read"
        )
    if status < 500 and status not in (408, 416, 425, 429):
        return _not_found(
            f"{where}: the Hub answers HTTP {status} ({_first_line(error)}); check the id and "
            "HF_ENDPOINT"
        )
    return Interrupted(f"{where}: the Hub answers HTTP {status}; try again later")


def _not_found(message: str) -> RequestError:
    return RequestError(ErrorCode.NOT_FOUND, message)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
