"""Brings a base model or an adapter to a local folder: the folder itself, or the Hub's cache.

HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE and HF_HUB_OFFLINE are huggingface_hub's own settings.
"""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from multilora.adapter_source import AdapterSource, is_folder_path
from multilora.errors import ErrorCode, RequestError, StartupError

BASE_FILES = ["*.json", "*.safetensors", "*.jinja"]
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]


def base_folder(model_id: str, revision: str) -> Path:
    """The local folder of a base model; raises StartupError."""
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        return folder
    if is_folder_path(model_id):
        raise StartupError(f"model_id {model_id!r}: there is no such folder; check --model-id")
    try:
        return _download(model_id, revision, BASE_FILES)
    except RequestError as error:
        raise StartupError(f"model_id {model_id!r}: {error.message}") from None


def adapter_folder(source: AdapterSource) -> Path:
    """The local folder of an adapter; raises RequestError (NOT_FOUND, UNAVAILABLE)."""
    try:
        if not source.is_folder:
            return _download(source.location, source.revision, ADAPTER_FILES)
        folder = Path(source.location).expanduser()
        if not folder.is_dir():
            raise RequestError(ErrorCode.NOT_FOUND, f"there is no folder {source.location}")
        return folder
    except RequestError as error:
        raise RequestError(error.code, f"adapter {source.adapter_id!r}: {error.message}") from None


def _download(repo_id: str, revision: str, patterns: list[str]) -> Path:
    where = f"{repo_id}@{revision}" if revision else repo_id
    try:
        return Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=patterns))
    except GatedRepoError:
        raise RequestError(
            ErrorCode.NOT_FOUND,
            f"{where} on the Hub is gated: accept its terms and set HF_TOKEN",
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise RequestError(
            ErrorCode.NOT_FOUND,
            f"{where} is neither a local folder nor a Hub repository that can be read; check the "
            "id, and set HF_TOKEN if it is private",
        ) from None
    except RevisionNotFoundError:
        raise RequestError(
            ErrorCode.NOT_FOUND, f"{where}: the Hub repository has no such revision"
        ) from None
    except LocalEntryNotFoundError:
        raise RequestError(
            ErrorCode.UNAVAILABLE,
            f"{where} is not in the Hub cache and the Hub cannot be reached; check the network, "
            "HF_ENDPOINT and HF_HUB_OFFLINE, then try again",
        ) from None
    except EntryNotFoundError as error:
        raise RequestError(ErrorCode.NOT_FOUND, f"{where}: {error}") from None
    except Exception as error:  # of whichever HTTP library this huggingface_hub uses
        raise RequestError(
            ErrorCode.UNAVAILABLE, f"{where} could not be downloaded ({error!r}); try again"
        ) from None
