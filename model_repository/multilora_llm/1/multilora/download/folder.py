"""adapter_folder, the door to this room: brings an adapter, wherever it is, to a local folder."""

from pathlib import Path

from multilora.adapters.naming.source import AdapterSource
from multilora.download.hub import HubDownload
from multilora.download.store import StoreDownload
from multilora.download.transfer import DownloadLimits, Transfer
from multilora.errors import ErrorCode, RequestError, invalid

_DEFAULT_LIMITS = DownloadLimits()


def adapter_folder(source: AdapterSource, limits: DownloadLimits = _DEFAULT_LIMITS) -> Path:
    """The local folder of an adapter, downloaded within `limits` unless it is a folder already.

    RequestError: NOT_FOUND (there is no such adapter, or it may not be read), UNAVAILABLE (the next
    attempt may succeed), INVALID_ARG (the adapter can never be served: too large, a pickle, a URL
    without a driver). Two calls for the same source at once are safe, also in two processes; what
    one of them has brought, the other does not fetch again. The caller adds to an error which
    adapter that is (see about_adapter).
    """
    if source.is_folder:
        return _existing_folder(source.location)
    transfer = Transfer(f"adapter {source.adapter_id}", limits)
    if not source.is_url:
        return HubDownload(source.location, source.revision, transfer, source.token).folder()
    if source.revision:
        raise invalid("a URL has no revisions; leave the revision out")
    return StoreDownload(source.location, transfer).folder()


def _existing_folder(location: str) -> Path:
    folder = Path(location).expanduser()
    if not folder.is_dir():
        raise RequestError(ErrorCode.NOT_FOUND, f"there is no folder {location}; check the path")
    return folder
