"""What the files of a folder say about text, file by file, beside transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from multilora_text.checkpoint_text import TEXT_FILES, merge_text
from multilora_text.errors import TextError
from multilora_text.tokenizer import Tokenizer, read_text_files
from support.tiny.tokenizers import byte_level

START, END = (byte_level().token_to_id(token) for token in ("<s>", "</s>"))
PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast"}
DECODER = {"added_tokens_decoder": {str(END): {"content": "</s>", "special": True}}}
Files = dict[str, Any]


def write(folder: Path, files: Files) -> Path:
    byte_level().save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>"}},
        {"tokenizer_config.json": {"eos_token": {"content": "</s>", "__type": "AddedToken"}}},
        {"tokenizer_config.json": {"bos_token": None, "pad_token": "</s>", "mask_token": "<s>"}},
        {"special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}}},
        {
            "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "<s>"},
            "special_tokens_map.json": {"eos_token": "</s>", "unk_token": "</s>"},
        },
        {
            "tokenizer_config.json": {"eos_token": "<s>", **DECODER},
            "special_tokens_map.json": {"eos_token": "</s>", "bos_token": "<s>"},
        },
        {
            "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>"},
            "special_tokens_map.json": {"bos_token": None},
        },
        {"tokenizer_config.json": {"image_token": "<s>", "add_bos_token": True}},
        {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<s>"}}},
        {"tokenizer_config.json": {"additional_special_tokens": ["<s>"]}},
    ],
)
def test_special_tokens_are_those_of_transformers(tmp_path: Path, files: Files) -> None:
    files = {**files, "tokenizer_config.json": PLAIN | files.get("tokenizer_config.json", {})}
    folder = write(tmp_path, files)
    want, ours = theirs(folder), Tokenizer.from_folder(folder)
    assert ours.text.special_tokens == want.special_tokens_map
    ends = () if want.eos_token_id is None else (want.eos_token_id,)
    assert ours.end_token_ids(ours.text) == ends


TEMPLATE_CASES: dict[str, Files] = {
    "config": {"tokenizer_config.json": {"chat_template": "config"}},
    "list": {
        "tokenizer_config.json": {
            "chat_template": [
                {"name": "default", "template": "listed"},
                {"name": "tool_use", "template": "listed tools"},
                {"name": "rag", "template": "listed documents"},
            ]
        }
    },
    "dict": {"tokenizer_config.json": {"chat_template": {"default": "d", "tool_use": "d tools"}}},
    "jinja": {
        "chat_template.jinja": "file",
        "tokenizer_config.json": {
            "chat_template": [{"name": "tool_use", "template": "listed tools"}]
        },
    },
    "folder": {
        "chat_template.jinja": "file",
        "additional_chat_templates/tool_use.jinja": "file tools",
        "additional_chat_templates/rag.jinja": "file documents",
        "tokenizer_config.json": {"chat_template": "config"},
    },
}


@pytest.mark.parametrize("tools", [None, [{"type": "function"}]], ids=["chat", "tools"])
@pytest.mark.parametrize("case", TEMPLATE_CASES)
def test_templates_are_those_of_transformers(tmp_path: Path, case: str, tools: Any) -> None:
    files = TEMPLATE_CASES[case]
    config = PLAIN | files.get("tokenizer_config.json", {})
    folder = write(tmp_path, {**files, "tokenizer_config.json": config})
    want = theirs(folder).get_chat_template(tools=tools)
    assert Tokenizer.from_folder(folder).template(tools=bool(tools)).source == want


def test_a_template_that_only_a_processors_file_has_counts_last(tmp_path: Path) -> None:
    legacy = {"chat_template.json": {"chat_template": "legacy"}}
    ours = Tokenizer.from_folder(write(tmp_path, legacy))
    assert ours.template().source == "legacy"
    config = {"tokenizer_config.json": {"chat_template": "config"}}
    assert Tokenizer.from_folder(write(tmp_path, config)).template().source == "config"


def test_without_a_default_template_only_chats_with_tools_are_rendered(tmp_path: Path) -> None:
    tools = {"additional_chat_templates/tool_use.jinja": "tools"}
    ours = Tokenizer.from_folder(write(tmp_path, tools))
    assert ours.template(tools=True).source == "tools"
    with pytest.raises(TextError, match="no chat template"):
        ours.template()


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({}, ()),
        ({"config.json": {"eos_token_id": 7}}, (7,)),
        ({"config.json": {"eos_token_id": [7, 8]}}, (7, 8)),
        ({"generation_config.json": {"eos_token_id": [3, 7]}}, (3, 7)),
        (
            {"config.json": {"eos_token_id": 7}, "generation_config.json": {"eos_token_id": [3]}},
            (7, 3),
        ),
        (
            {"config.json": {"eos_token_id": 7}, "tokenizer_config.json": {"eos_token": "</s>"}},
            (7, END),
        ),
        (
            {"config.json": {"eos_token_id": END}, "tokenizer_config.json": {"eos_token": "</s>"}},
            (END,),
        ),
        ({"tokenizer_config.json": {"eos_token": "<nowhere>"}}, ()),
        ({"config.json": {"eos_token_id": -1}}, ()),
        ({"config.json": {"eos_token_id": None}}, ()),
    ],
)
def test_end_tokens_are_those_of_all_files(
    tmp_path: Path, files: Files, ends: tuple[int, ...]
) -> None:
    ours = Tokenizer.from_folder(write(tmp_path, files))
    assert ours.end_token_ids(ours.text) == ends


def test_sampling_is_what_transformers_would_do(tmp_path: Path) -> None:
    values = {
        "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1,
    }  # fmt: skip
    GenerationConfig(do_sample=True, max_new_tokens=9, **values).save_pretrained(str(tmp_path))
    assert merge_text(read_text_files(tmp_path)).sampling == values
    assert (
        merge_text({"generation_config.json": '{"top_p": null, "do_sample": true}'}).sampling == {}
    )


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", {"eos_token_id": "</s>"}, "config.json: eos_token_id must be a token id"),
        ("generation_config.json", {"eos_token_id": [True]}, "eos_token_id must be a token id"),
        ("generation_config.json", {"temperature": "hot"}, "temperature must be a number"),
        ("generation_config.json", {"top_p": True}, "top_p must be a number; got 'True'"),
        ("generation_config.json", {"top_k": 1.5}, "top_k must be a whole number; got '1.5'"),
        ("tokenizer_config.json", {"chat_template": [1]}, "chat_template must be a string"),
        ("tokenizer_config.json", {"chat_template": {"default": 1}}, "must be a string; got int"),
        ("special_tokens_map.json", "null", "special_tokens_map.json must be a JSON object"),
        ("chat_template.json", "{", "chat_template.json is not JSON"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: Any, reason: str) -> None:
    with pytest.raises(TextError, match=reason) as caught:
        Tokenizer.from_folder(write(tmp_path, {name: content}))
    assert str(caught.value).startswith(f"{tmp_path}: ")


def test_files_may_begin_with_a_mark(tmp_path: Path) -> None:
    config = "\ufeff" + json.dumps({"eos_token": "</s>"})
    ours = Tokenizer.from_folder(write(tmp_path, {"tokenizer_config.json": config}))
    assert ours.text.special_tokens == {"eos_token": "</s>"}


def test_every_text_file_is_read(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(TEXT_FILES, "{}"))
    assert {*read_text_files(tmp_path)} == {"tokenizer.json", *TEXT_FILES}
