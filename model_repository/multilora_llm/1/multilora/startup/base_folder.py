"""The folder of the base model on this machine, and the tokenizer in it.

The Triton model `tokenizer` reads both, too, so nothing here imports torch. HF_ENDPOINT, HF_TOKEN,
HF_HUB_CACHE and HF_HUB_OFFLINE are huggingface_hub's own settings.
"""

import glob
from pathlib import Path

from huggingface_hub import snapshot_download

from multilora.base_model.config import INDEX, SINGLE, check_base_folder, weight_map
from multilora.config import DEMO, EngineConfig
from multilora.download.hub import hub_error
from multilora.errors import StartupError
from multilora_api.adapter_names import is_folder_path
from multilora_text.errors import TextError
from multilora_text.tokenizer import Tokenizer

# Repositories hold the same weights in other forms too, and other models in folders.
_FILES = ["*.json", "*.jinja", SINGLE]
_OTHERS = ["*/*.json", f"*/{SINGLE}"]


def base_folder(config: EngineConfig) -> Path:
    """The folder `model_id`, or else that Hub repository in the Hub cache, or the demo's base when
    none is named; raises StartupError."""
    model_id, revision = config.model_id, config.revision
    if not model_id:
        return DEMO / "base"
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        check_base_folder(folder)
        return folder
    if is_folder_path(model_id):
        raise StartupError(f"model_id {model_id!r}: there is no such folder; check --model-id")
    folder = _snapshot(model_id, revision, _FILES)
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return folder
    shards = sorted(set(weight_map(folder).values()))
    return _snapshot(model_id, folder.name, [glob.escape(name) for name in shards])


def _snapshot(model_id: str, revision: str, patterns: list[str]) -> Path:
    """The folder of that commit, with the files that match; StartupError: they cannot be had."""
    try:
        return Path(
            snapshot_download(
                model_id,
                revision=revision or None,
                allow_patterns=patterns,
                ignore_patterns=_OTHERS,
            )
        )
    except Exception as error:
        where = f"{model_id}@{revision}" if revision else model_id
        raise StartupError(f"model_id {model_id!r}: {hub_error(where, error).message}") from None


def base_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in the folder of a base model; raises StartupError."""
    try:
        return Tokenizer.from_folder(folder)
    except TextError as error:
        raise StartupError(str(error)) from None
