"""Chat templates and tokens that adapter folders bring."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from multilora.adapters.checkpoint.text import NO_TEXT, TEXT_LIMITS, AdapterText, adapter_text
from multilora.adapters.files import OPTIONAL_FILES, read_settled
from multilora.errors import ErrorCode, RequestError
from multilora_text.errors import TextError
from multilora_text.tokenizer import Tokenizer
from support.chats import chat, encode_chat
from support.tiny.tokenizers import byte_level

BASE_TEMPLATE = "{{ bos_token }}base:{{ messages[0]['content'] }}"
OWN_TEMPLATE = "{{ bos_token }}own:{{ messages[0]['content'] }}{{ eos_token }}"
MESSAGES = [{"role": "user", "content": "hé"}]


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """A base model as transformers saves it."""
    folder = tmp_path / "base"
    saved(BASE_TEMPLATE).save_pretrained(str(folder))
    return folder


@pytest.fixture
def base(base_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(base_folder)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    return folder


def saved(template: str, **special: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(),
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
        **special,
    )


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def read_text(folder: Path, tokenizer: Tokenizer) -> AdapterText:
    return adapter_text(read_settled(folder, OPTIONAL_FILES, TEXT_LIMITS), tokenizer)


def refused(reason: str, folder: Path, base: Tokenizer) -> RequestError:
    with pytest.raises(RequestError, match=reason) as caught:
        read_text(folder, base)
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert len(caught.value.message) < 500
    return caught.value


def test_a_folder_without_text_brings_nothing(adapter: Path, base: Tokenizer) -> None:
    assert read_text(adapter, base) == NO_TEXT
    write(adapter, "tokenizer_config.json", {"chat_template": None, "bos_token": None})
    assert read_text(adapter, base) == NO_TEXT
    write(adapter, "tokenizer_config.json", {"chat_template": [{"name": "rag", "template": "x"}]})
    assert read_text(adapter, base) == NO_TEXT


@pytest.mark.parametrize("place", ["config", "list", "jinja"])
def test_its_template_renders_chats(adapter: Path, base: Tokenizer, place: str) -> None:
    config: dict[str, Any] = {"chat_template": OWN_TEMPLATE}
    if place == "list":
        config["chat_template"] = [
            {"name": "rag", "template": "x"},
            {"name": "default", "template": OWN_TEMPLATE},
        ]
    if place == "jinja":
        config["chat_template"] = "loses"
        write(adapter, "chat_template.jinja", OWN_TEMPLATE)
    write(adapter, "tokenizer_config.json", config)
    own = read_text(adapter, base).templates
    assert chat(base, MESSAGES, own) == "<s>own:hé</s>"  # the base model's special tokens
    assert chat(base, MESSAGES) == "<s>base:hé"
    ids = encode_chat(base, MESSAGES, own)
    assert ids == byte_level().encode("<s>own:hé</s>", add_special_tokens=False).ids


def test_its_special_tokens_are_its_own(adapter: Path, base: Tokenizer) -> None:
    """As transformers has them of the same folder."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": OWN_TEMPLATE,
        "eos_token": {"content": "</s>", "__type": "AddedToken"}, "pad_token": "</s>",
    }  # fmt: skip
    write(adapter, "tokenizer_config.json", config)
    write(adapter, "special_tokens_map.json", {"bos_token": "</s>", "eos_token": "<s>"})
    text = read_text(adapter, base)
    assert chat(base, MESSAGES, text.templates) == "</s>own:hé<s>"
    byte_level().save(str(adapter / "tokenizer.json"))
    theirs: Any = AutoTokenizer.from_pretrained(str(adapter))
    assert theirs.apply_chat_template(MESSAGES, tokenize=False) == "</s>own:hé<s>"
    assert text.end_token_ids == {theirs.eos_token_id}


def test_a_chat_with_tools_is_rendered_with_its_template_for_these(
    adapter: Path, base: Tokenizer
) -> None:
    named = [{"name": "tool_use", "template": "own:{{ tools | length }}"}]
    write(adapter, "tokenizer_config.json", {"chat_template": named})
    own = read_text(adapter, base).templates
    assert chat(base, MESSAGES, own, tools=[{}]) == "own:1"
    assert chat(base, MESSAGES, own) == "<s>base:hé"


def test_copies_of_the_tokenizer_of_the_base_pass(adapter: Path, base: Tokenizer) -> None:
    saved(OWN_TEMPLATE, pad_token="</s>").save_pretrained(str(adapter))
    write(adapter, "added_tokens.json", {"<s>": byte_level().token_to_id("<s>")})
    write(adapter, "special_tokens_map.json", {"bos_token": {"content": "<s>"}})
    assert chat(base, MESSAGES, read_text(adapter, base).templates) == "<s>own:hé</s>"


def test_a_special_token_that_the_base_only_names_passes(adapter: Path, base_folder: Path) -> None:
    config = json.loads((base_folder / "tokenizer_config.json").read_text())
    write(base_folder, "tokenizer_config.json", {**config, "pad_token": "<nowhere>"})
    write(adapter, "tokenizer_config.json", {"pad_token": "<nowhere>"})
    assert read_text(adapter, Tokenizer.from_folder(base_folder)) == NO_TEXT


def test_a_tokenizer_with_added_tokens_as_transformers_saves_it(
    adapter: Path, base: Tokenizer
) -> None:
    tokenizer = saved(OWN_TEMPLATE)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(str(adapter))
    if not json.loads((adapter / "tokenizer_config.json").read_text()).get("added_tokens_decoder"):
        (adapter / "added_tokens.json").write_text(json.dumps({"<new>": len(tokenizer) - 1}))
    text = read_text(adapter, base)
    assert "adds the tokens '<new>', for which it brings no embedding" in text.warning
    assert chat(base, MESSAGES, text.templates) == "<s>own:hé</s>"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("added_tokens.json", {"<x>": 262}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"262": {"content": "<x>"}}}),
        ("tokenizer_config.json", {"pad_token": "<x>"}),
        ("tokenizer_config.json", {"mask_token": "<x>"}),
        ("tokenizer_config.json", {"additional_special_tokens": ["<s>", {"content": "<x>"}]}),
        ("tokenizer_config.json", {"extra_special_tokens": {"image_token": "<x>"}}),
        ("special_tokens_map.json", {"eos_token": {"content": "<x>"}}),
        ("special_tokens_map.json", {"additional_special_tokens": ["<x>"]}),
    ],
)
def test_added_tokens(adapter: Path, base: Tokenizer, name: str, value: Any) -> None:
    write(adapter, name, value)
    text = read_text(adapter, base)
    assert text.warning.startswith("its tokenizer adds the tokens '<x>', for which")
    assert not text.end_token_ids and not [*text.templates]


def test_many_added_tokens_are_not_all_named(adapter: Path, base: Tokenizer) -> None:
    write(adapter, "added_tokens.json", {f"<{'x' * 100}{i}>": 262 + i for i in range(9)})
    warning = read_text(adapter, base).warning
    assert "and 4 more, for which" in warning and len(warning) < 500


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_under_another_id(adapter: Path, base: Tokenizer, name: str) -> None:
    number = byte_level().token_to_id("</s>")
    assert number is not None
    decoder = {"added_tokens_decoder": {str(number - 1): {"content": "</s>"}}}
    write(adapter, name, {"</s>": number - 1} if name == "added_tokens.json" else decoder)
    refused("gives the tokens '</s>' other ids than the base model", adapter, base)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (
            "chat_template.jinja",
            "x" * (1 << 20) + "y",
            "chat_template.jinja is larger than 1048576",
        ),
        (
            "tokenizer_config.json",
            {"chat_template": 7},
            "chat_template must be a string; got int; fix or remove",
        ),
        ("tokenizer_config.json", {"chat_template": "x" * (1 << 20) + "y"}, "its chat template is"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", "[" * 100_000, "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json must be a JSON object; got list"),
        ("tokenizer_config.json", {"added_tokens_decoder": ["<s>"]}, "added_tokens_decoder of"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": 2}}, "added_tokens_decoder of"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"one": {"content": "<s>"}}},
            "added_tokens_decoder of .*: token ids are whole numbers; got 'one'",
        ),
        ("added_tokens.json", {"<s>": 1.5}, "added_tokens.json: token ids are whole numbers"),
        ("added_tokens.json", " " * (8 << 20) + "{}", "added_tokens.json is larger than"),
        ("special_tokens_map.json", "null", "special_tokens_map.json must be a JSON object"),
    ],
)
def test_bad_files(adapter: Path, base: Tokenizer, name: str, value: Any, reason: str) -> None:
    write(adapter, name, value)
    refused(reason, adapter, base)


def test_files_that_are_no_text(adapter: Path, base: Tokenizer) -> None:
    (adapter / "chat_template.jinja").write_bytes(b"\xff")
    refused("chat_template.jinja is not UTF-8", adapter, base)
    (adapter / "chat_template.jinja").unlink()
    os.mkfifo(adapter / "tokenizer_config.json")  # opening it would wait for ever
    refused("tokenizer_config.json .* not a regular file", adapter, base)


def test_every_text_file_that_is_read_has_a_limit(adapter: Path) -> None:
    for name in OPTIONAL_FILES:
        (adapter / name).parent.mkdir(exist_ok=True)
        with open(adapter / name, "wb") as file:
            file.truncate(100 << 20)  # takes no room on the disk
        with pytest.raises(RequestError, match=f"{name} is larger than"):
            read_settled(adapter, OPTIONAL_FILES, TEXT_LIMITS)
        (adapter / name).unlink()
    assert read_settled(adapter, OPTIONAL_FILES, TEXT_LIMITS) == {}


def test_a_file_that_vanishes_meanwhile_is_no_defect(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may be replaced at any time, so between any two looks at a file."""
    write(adapter, "tokenizer_config.json", {})
    real = os.stat

    def and_then_gone(path: Any, *arguments: Any, **more: Any) -> os.stat_result:
        status = real(path, *arguments, **more)
        if Path(path).name == "tokenizer_config.json":
            Path(path).unlink()
        return status

    monkeypatch.setattr(os, "stat", and_then_gone)
    assert read_settled(adapter, OPTIONAL_FILES, TEXT_LIMITS) == {}


def test_its_template_runs_in_the_sandbox(adapter: Path, base: Tokenizer) -> None:
    write(adapter, "chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    own = read_text(adapter, base).templates
    with pytest.raises(TextError, match="unsafe"):
        chat(base, MESSAGES, own)
