"""Reading a tokenizer and rendering chats."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from multilora_text.checkpoint_text import CheckpointText
from multilora_text.errors import TextError
from multilora_text.tokenizer import Tokenizer
from support.chats import chat, encode_chat, only
from support.tiny import tokenizers as tiny_tokenizers
from support.tiny.tokenizers import byte_level

TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'tool' %}
        {{- raise_exception('no tools here') }}
    {%- endif %}
    {%- if message['role'] == 'skip' %}{% continue %}{% endif %}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
{{ message['content'] }}
        {%- endgeneration %}
    {%- else %}
[{{ message['role'] }}] {{ {'text': message['content']} | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
[assistant]
{%- endif %}
"""
MESSAGES = [
    {"role": "user", "content": 'é < "quotes"'},
    {"role": "skip", "content": "unseen"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "and?"},
]


def write(folder: Path, **config: Any) -> Path:
    byte_level().save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_text_survives_the_round_trip(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write(tmp_path))
    assert tokenizer.decode(tokenizer.encode("naïve 😀 text")) == "naïve 😀 text"


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_ids_and_places_are_those_of_the_tokenizer_itself(kind: str, special: bool) -> None:
    backend = tiny_tokenizers.KINDS[kind]()
    around = [("<s>", 0), ("</s>", 1)]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=around
    )
    tokenizer = Tokenizer(
        backend, CheckpointText(templates={"default": "{{ messages[0].content }}"})
    )
    for text in ("", " ", "hello world", "naïve 😀 <s> 漢字\n", "the hello " * 500):
        want = backend.encode(text, add_special_tokens=special)
        found = tokenizer.encode(text) if special else encode_chat(tokenizer, [{"content": text}])
        assert found == want.ids
        spans = [(number, *span) for number, span in zip(want.ids, want.offsets, strict=True)]
        assert tokenizer.spans(text, special) == spans


@pytest.mark.parametrize("method", ["encode", "spans", "encode_rendered"])
def test_other_threads_run_while_a_long_text_is_tokenised(method: str) -> None:
    tokenizer = Tokenizer(tiny_tokenizers.metaspace())
    text = " " * 4_000_000  # becomes one token, so that all the time goes by inside tokenizers
    worker = threading.Thread(target=getattr(tokenizer, method), args=(text,))
    ticks = 0
    worker.start()
    while worker.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks > 20


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path: Path) -> None:
    write(tmp_path)
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_folder(tmp_path).encode("0123456789")) == 10


@pytest.mark.parametrize("place", ["config", "list", "jinja"])
def test_chat_equals_transformers(tmp_path: Path, place: str) -> None:
    folder = write(tmp_path)
    if place == "jinja":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    else:
        named = [{"name": "default", "template": TEMPLATE}, {"name": "rag", "template": "x"}]
        write(folder, chat_template=TEMPLATE if place == "config" else named)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token="<s>", chat_template=TEMPLATE
    )
    want = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    tokenizer = Tokenizer.from_folder(folder)
    assert chat(tokenizer, MESSAGES) == want
    assert encode_chat(tokenizer, MESSAGES)[0] == byte_level().token_to_id("<s>")


def test_template_refuses(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write(tmp_path, chat_template=TEMPLATE))
    with pytest.raises(TextError, match="no tools here"):
        chat(tokenizer, [{"role": "tool", "content": ""}])


def test_templates_run_in_a_sandbox(tmp_path: Path) -> None:
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    tokenizer = Tokenizer.from_folder(write(tmp_path, chat_template=escape))
    with pytest.raises(TextError, match="unsafe"):
        chat(tokenizer, MESSAGES)


def test_no_chat_template(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="no chat template; render"):
        chat(Tokenizer.from_folder(write(tmp_path)), MESSAGES)


def test_the_template_of_an_adapter_takes_the_place_of_the_base_models(tmp_path: Path) -> None:
    own = only("{{ bos_token }}<own>", bos_token="<s>")
    for folder in (write(tmp_path), write(tmp_path, chat_template=TEMPLATE)):
        tokenizer = Tokenizer.from_folder(folder)
        assert chat(tokenizer, MESSAGES, own) == "<s><own>"
        want = byte_level().encode("<s><own>", add_special_tokens=False).ids
        assert encode_chat(tokenizer, MESSAGES, own) == want


def test_the_tokenizer_adds_no_token_of_its_own_to_a_chat(tmp_path: Path) -> None:
    backend = byte_level()
    start = backend.token_to_id("<s>")
    assert start is not None
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", start)]
    )
    own = only("{{ bos_token }}hi", bos_token="<s>")
    tokenizer = Tokenizer(backend, CheckpointText(templates={"default": "<s>hi"}))
    assert tokenizer.encode("hi").count(start) == 1
    assert encode_chat(tokenizer, MESSAGES).count(start) == 1
    assert encode_chat(tokenizer, MESSAGES, own).count(start) == 1


def test_threads_share_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write(tmp_path, chat_template=TEMPLATE))
    chats = [[{"role": "user", "content": f"é {n} " * 50}] for n in range(40)]

    def work(messages: list[dict[str, str]]) -> tuple[list[int], str]:
        ids = encode_chat(tokenizer, messages)
        return ids, tokenizer.decode(ids)

    alone = [work(messages) for messages in chats]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, chats * 5)) == alone * 5


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"tokenizer\.json does not exist"):
        Tokenizer.from_folder(tmp_path)
    write(tmp_path, chat_template=7)
    with pytest.raises(TextError, match=rf"{tmp_path}: chat_template must be a string; got int"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(TextError, match=r"tokenizer_config\.json is not JSON"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TextError, match="cannot be read"):
        Tokenizer.from_folder(tmp_path)
