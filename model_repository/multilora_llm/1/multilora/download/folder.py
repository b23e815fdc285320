"""Brings a base model or an adapter to a local folder.

That is the folder itself, or a copy in the Hub's cache: HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE and
HF_HUB_OFFLINE are huggingface_hub's own settings.
"""

from pathlib import Path

from huggingface_hub import snapshot_download

from multilora.adapters.naming.source import AdapterSource, is_folder_path
from multilora.base_model.config import check_base_folder
from multilora.download.hub import HubDownload
from multilora.download.hub_errors import hub_error
from multilora.download.store import StoreDownload
from multilora.download.transfer import DownloadLimits, Transfer
from multilora.errors import ErrorCode, RequestError, StartupError, invalid
from multilora_text.errors import TextError
from multilora_text.tokenizer import Tokenizer

BASE_FILES = ["*.json", "*.safetensors", "*.jinja"]
_DEFAULT_LIMITS = DownloadLimits()


def base_folder(model_id: str, revision: str) -> Path:
    """The local folder of a base model; raises StartupError."""
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        check_base_folder(folder)
        return folder
    if is_folder_path(model_id):
        raise StartupError(f"model_id {model_id!r}: there is no such folder; check --model-id")
    where = f"{model_id}@{revision}" if revision else model_id
    try:
        return Path(
            snapshot_download(model_id, revision=revision or None, allow_patterns=BASE_FILES)
        )
    except Exception as error:
        raise StartupError(f"model_id {model_id!r}: {hub_error(where, error).message}") from None


def base_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in the folder of a base model; raises StartupError."""
    try:
        return Tokenizer.from_folder(folder)
    except TextError as error:
        raise StartupError(str(error)) from None


def adapter_folder(source: AdapterSource, limits: DownloadLimits = _DEFAULT_LIMITS) -> Path:
    """The local folder of an adapter, downloaded within `limits` unless it is a folder already.

    RequestError: NOT_FOUND (no such adapter, or no leave to read it), UNAVAILABLE (may pass by
    itself), INVALID_ARG (it can never be served: too large, a pickle, a URL without a driver).
    Two calls for the same source at once are safe, also in two processes; what one has brought,
    the other does not fetch again.
    """
    try:
        if source.is_folder:
            return _existing_folder(source.location)
        transfer = Transfer(f"adapter {source.adapter_id}", limits)
        if not source.is_url:
            return HubDownload(source.location, source.revision, transfer, source.token).folder()
        if source.revision:
            raise invalid("a URL has no revisions; leave the revision out")
        return StoreDownload(source.location, transfer).folder()
    except RequestError as error:
        raise RequestError(error.code, f"adapter {source.adapter_id!r}: {error.message}") from None


def _existing_folder(location: str) -> Path:
    folder = Path(location).expanduser()
    if not folder.is_dir():
        raise RequestError(ErrorCode.NOT_FOUND, f"there is no folder {location}; check the path")
    return folder
