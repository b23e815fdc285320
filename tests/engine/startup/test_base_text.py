"""What the base model's folder says about text, as the engine takes it."""

import json
from pathlib import Path
from typing import Any

import pytest

from multilora.config import EngineConfig
from multilora.errors import StartupError
from multilora.startup.base_folder import BaseText, base_text
from support.tiny.tokenizers import byte_level


def write(folder: Path, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    generation = {"eos_token_id": [3], "temperature": 0.6, "top_k": -1, "do_sample": True}
    return write(tmp_path / "base", config={"eos_token_id": 7}, generation_config=generation)


def read(base: Path, source: str = "auto") -> BaseText:
    return base_text(EngineConfig(generation_config=source), base)


def test_sampling_defaults_are_the_bases_unless_told_otherwise(base: Path, tmp_path: Path) -> None:
    assert read(base).sampling_defaults == {"temperature": 0.6, "top_k": 0}
    assert read(base, "none").sampling_defaults == {}
    other = write(tmp_path / "other", generation_config={"eos_token_id": 4, "min_p": 0.1})
    text = read(base, str(other))
    assert (text.sampling_defaults, text.end_token_ids) == ({"min_p": 0.1}, (7, 4))


def test_end_tokens_need_no_tokenizer_and_no_sampling_defaults(base: Path) -> None:
    assert read(base, "none") == BaseText(None, (7, 3), {})
    byte_level().save(str(base / "tokenizer.json"))
    write(base, tokenizer_config={"eos_token": "</s>"})
    text = read(base)
    assert text.tokenizer and text.end_token_ids == (7, 3, text.tokenizer.token_id("</s>"))


@pytest.mark.parametrize(
    ("generation", "reason"),
    [
        ({"temperature": 200}, "temperature must be 0 .greedy. or up to 100; got 200; correct"),
        ({"top_p": 0}, "top_p must be above 0 .* or start with --generation-config none"),
        ({"top_k": 0.5}, "top_k must be a whole number"),
    ],
)
def test_a_value_that_no_request_may_have(base: Path, generation: Any, reason: str) -> None:
    write(base, generation_config=generation)
    with pytest.raises(StartupError, match=f"generation_config.json: {reason}"):
        read(base)


@pytest.mark.parametrize("source", ["vllm", "nowhere"])
def test_a_folder_without_the_file_is_no_source(base: Path, tmp_path: Path, source: str) -> None:
    with pytest.raises(StartupError, match=f"generation_config '.*{source}' is no folder that has"):
        read(base, str(tmp_path / source))
