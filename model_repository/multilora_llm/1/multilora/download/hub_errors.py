"""What an error of huggingface_hub means to the user."""

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from multilora.download.partial_file import DISK_FULL
from multilora.download.transfer import Interrupted
from multilora.errors import ErrorCode, RequestError

_SET_TOKEN = "set HF_TOKEN (for an adapter, a request may send adapter_token)"
_UNREACHABLE = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, then try again"


def hub_error(where: str, error: Exception) -> RequestError:
    """`where` is `org/name@revision`. Interrupted: it may pass by itself."""
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
        return not_cached(where)
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


def not_cached(where: str) -> RequestError:
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
