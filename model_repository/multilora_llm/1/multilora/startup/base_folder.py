"""The folder of the base model on this machine, and the tokenizer in it.

The Triton model `tokenizer` reads both, too, so nothing here imports torch. HF_ENDPOINT, HF_TOKEN,
HF_HUB_CACHE and HF_HUB_OFFLINE are huggingface_hub's own settings.
"""

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from multilora.base_model.config import INDEX, SINGLE, check_base_folder, weight_map
from multilora.config import DEMO, EngineConfig
from multilora.download.hub import hub_error
from multilora.errors import StartupError
from multilora_api.adapter_names import is_folder_path
from multilora_api.sampling import ParameterError, SamplingParams
from multilora_text.checkpoint_text import GENERATION_CONFIG, CheckpointText, merge_text
from multilora_text.errors import TextError
from multilora_text.renderer import TemplateRenderer
from multilora_text.tokenizer import TOKENIZER_FILE, Tokenizer, read_text_files

# Repositories hold the same weights in other forms too, and other models in folders.
_FILES = ["*.json", "*.jinja", SINGLE]
_OTHERS = ["*/*.json"]


@dataclass(frozen=True)
class BaseText:
    """What the base model's folder says about text. `tokenizer` None: it has none, so there is no
    text. `end_token_ids` end every answer. `sampling_defaults` are for requests to the OpenAI API,
    by the names of SamplingParams."""

    tokenizer: Tokenizer | None
    end_token_ids: tuple[int, ...]
    sampling_defaults: Mapping[str, float]


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


def base_text(config: EngineConfig, folder: Path) -> BaseText:
    """Of the base model in `folder`; raises StartupError."""
    try:
        files = read_text_files(folder) | _generation_config(config)
        text = merge_text(files, str(folder))
        tokenizer = None
        if TOKENIZER_FILE in files:
            tokenizer = Tokenizer.from_files(files, str(folder))
    except TextError as error:
        raise StartupError(str(error)) from None
    ends = tokenizer.end_token_ids(text) if tokenizer else text.end_token_ids
    return BaseText(tokenizer, ends, _sampling_defaults(config, text))


def tried_text(config: EngineConfig, folder: Path, renderer: TemplateRenderer) -> BaseText:
    """As base_text, whose chat templates `renderer` has tried."""
    text = base_text(config, folder)
    try:
        for template in text.tokenizer.templates if text.tokenizer else ():
            renderer.check(template)
    except ValueError as error:
        raise StartupError(f"the chat template in {folder} {error}; fix or remove it") from None
    return text


def _generation_config(config: EngineConfig) -> dict[str, str]:
    """The file that takes the place of the base model's, if the settings name one."""
    named = config.generation_config
    if named in ("auto", "none"):
        return {}
    texts = read_text_files(Path(named).expanduser())
    if GENERATION_CONFIG not in texts:
        raise StartupError(
            f"generation_config {named!r} is no folder that has a {GENERATION_CONFIG}; check "
            "--generation-config, which is auto, none or such a folder"
        )
    return {GENERATION_CONFIG: texts[GENERATION_CONFIG]}


def _sampling_defaults(config: EngineConfig, text: CheckpointText) -> Mapping[str, float]:
    if config.generation_config == "none":
        return {}
    values: dict[str, Any] = dict(text.sampling)
    if values.get("top_k") == -1:  # vLLM's way of saying off
        values["top_k"] = 0
    try:
        SamplingParams(**values)
    except ParameterError as error:
        raise StartupError(
            f"{GENERATION_CONFIG}: {error}; correct it, or start with --generation-config none"
        ) from None
    return values


def base_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in the folder of a base model; raises StartupError."""
    try:
        return Tokenizer.from_folder(folder)
    except TextError as error:
        raise StartupError(str(error)) from None
