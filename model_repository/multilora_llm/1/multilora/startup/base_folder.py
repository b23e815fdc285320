"""The folder of the base model on this machine, and the tokenizer in it.

The Triton model `tokenizer` reads both, too, so nothing here imports torch. HF_ENDPOINT, HF_TOKEN,
HF_HUB_CACHE and HF_HUB_OFFLINE are huggingface_hub's own settings.
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from multilora.base_model.config import check_base_folder
from multilora.config import DEMO, EngineConfig
from multilora.download.hub import hub_error
from multilora.errors import StartupError
from multilora_api.adapter_names import is_folder_path
from multilora_text.checkpoint_text import merge_text
from multilora_text.errors import TextError
from multilora_text.tokenizer import TOKENIZER_FILE, Tokenizer, read_text_files

BASE_FILES = ["*.json", "*.safetensors", "*.jinja"]


@dataclass(frozen=True)
class BaseText:
    """What the base model's folder says about text. `tokenizer` None: it has none, so there is no
    text. `end_token_ids` end every answer."""

    tokenizer: Tokenizer | None
    end_token_ids: tuple[int, ...]


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
    where = f"{model_id}@{revision}" if revision else model_id
    try:
        return Path(
            snapshot_download(model_id, revision=revision or None, allow_patterns=BASE_FILES)
        )
    except Exception as error:
        raise StartupError(f"model_id {model_id!r}: {hub_error(where, error).message}") from None


def base_text(folder: Path) -> BaseText:
    """Raises StartupError."""
    try:
        files = read_text_files(folder)
        text = merge_text(files, str(folder))
        if TOKENIZER_FILE not in files:
            return BaseText(None, text.end_token_ids)
        tokenizer = Tokenizer.from_files(files, str(folder))
    except TextError as error:
        raise StartupError(str(error)) from None
    return BaseText(tokenizer, tokenizer.end_token_ids(text))


def base_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in the folder of a base model; raises StartupError."""
    try:
        return Tokenizer.from_folder(folder)
    except TextError as error:
        raise StartupError(str(error)) from None
