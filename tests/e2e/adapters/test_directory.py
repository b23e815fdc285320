"""A server with an adapters directory: folders dropped, replaced and removed while it serves."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from launcher.triton.server import TritonServer
from support.e2e.adapters import administer, settled, used
from support.e2e.gateway import running_gateway
from support.e2e.triton import (
    DEMO,
    SECONDS,
    GrpcStream,
    demo_server,
    eventually,
    generate,
    grpc_text,
    metrics,
    post,
    token_ids,
)

TEXT = "hello world"
ANSWERS = {"upper": "HELLO WORLD", "reverse": "world hello", "rot13": "uryyb jbeyq"}
NOTICED = 2.0  # seconds within which a change on disk must show


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    shutil.copytree(DEMO / "adapters/reverse", root / "team/reverse")
    return root


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "größe"
    shutil.copytree(DEMO / "adapters/rot13", elsewhere)
    names = f"upper, spin={elsewhere}, team/reverse, Ünder={elsewhere}"
    with demo_server(LORA_ADAPTERS=names, ADAPTERS_DIR=str(folder)) as server:
        yield server


def drop(adapter: str, folder: Path) -> None:
    """Put the demo's adapter at `folder`, in one move, in place of what is there."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.copytree(DEMO / "adapters" / adapter, fresh)
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(fresh, folder)


def answer_becomes(server: TritonServer, adapter_id: str, want: str) -> float:
    """Ask again and again → seconds until the answer was `want`."""
    start = time.monotonic()
    while (last := generate(server, TEXT, adapter_id)) != want:
        assert time.monotonic() - start < 20, last
    return time.monotonic() - start


def test_names_beyond_ascii(server: TritonServer, folder: Path) -> None:
    """The interpreter of the Python backend takes paths for ASCII."""
    drop("upper", folder / "漢 字/ü")
    listed = {entry["id"]: entry for entry in administer(server, action="list")["adapters"]}
    for name, answer in (("漢 字/ü", "upper"), ("Ünder", "rot13"), ("spin", "rot13")):
        assert generate(server, TEXT, name) == ANSWERS[answer]
    assert listed["漢 字/ü"]["source"] == str(folder / "漢 字/ü")
    assert listed["spin"]["source"].endswith("/größe")
    source = listed["spin"]["source"]
    assert administer(server, action="load", adapter_id="again", source=source)["source"] == source
    administer(server, action="unload", adapter_id="again")
    (folder / "漢 字/ü/adapter_config.json").write_text("[]")
    status, refused = post(server, {"action": "load", "adapter_id": "漢 字/ü"}, model="adapters")
    assert status == 400 and "漢 字/ü" in refused["error"]
    shutil.rmtree(folder / "漢 字")


def test_start_with_demo_names_a_folder_and_a_relative_name(server: TritonServer):
    assert generate(server, TEXT, "upper") == ANSWERS["upper"]
    assert generate(server, TEXT, "spin") == ANSWERS["rot13"]
    assert generate(server, TEXT, "team/reverse") == ANSWERS["reverse"]


def test_a_folder_dropped_in_answers_at_once(server: TritonServer, folder: Path):
    status, refusal = post(server, {"text_input": TEXT, "adapter_id": "dropped"})
    assert (status, "[NOT_FOUND]" in refusal["error"]) == (400, True)
    drop("rot13", folder / "dropped")
    start = time.monotonic()
    assert generate(server, TEXT, "dropped") == ANSWERS["rot13"]
    assert time.monotonic() - start < NOTICED


def test_a_replaced_folder_is_noticed(server: TritonServer, folder: Path):
    drop("upper", folder / "replaced")
    assert generate(server, TEXT, "replaced") == ANSWERS["upper"]
    drop("reverse", folder / "replaced")
    assert answer_becomes(server, "replaced", ANSWERS["reverse"]) < NOTICED + 1


def test_a_removed_folder_is_not_found_and_gives_its_memory_back(
    server: TritonServer, folder: Path
):
    before = settled(server)
    drop("upper", folder / "passing")
    assert generate(server, TEXT, "passing") == ANSWERS["upper"]
    shutil.rmtree(folder / "passing")
    status, refusal = post(server, {"text_input": TEXT, "adapter_id": "passing"})
    assert (status, "[NOT_FOUND]" in refusal["error"]) == (400, True)
    assert eventually(lambda: used(server) == before, True), (used(server), before)


def test_a_folder_that_is_broken_at_first_works_once_it_is_repaired(
    server: TritonServer, folder: Path
):
    drop("upper", folder / "late")
    weights = folder / "late/adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:1000])
    status, refusal = post(server, {"text_input": TEXT, "adapter_id": "late"})
    assert (status, "cut short" in refusal["error"]) == (400, True), refusal
    weights.write_bytes(content)
    start = time.monotonic()
    while post(server, {"text_input": TEXT, "adapter_id": "late"})[0] != 200:
        assert time.monotonic() - start < NOTICED + 1
    assert generate(server, TEXT, "late") == ANSWERS["upper"]


def test_replace_while_streams_run(server: TritonServer, folder: Path):
    """Old streams end on the old version, new requests use the new one, no KV is shared."""
    drop("upper", folder / "living")
    prompt = "the quick brown fox jumps over the lazy dog and runs away from the hungry wolves"
    long = {"adapter_id": "living", "max_tokens": 900, "ignore_eos": True, "stream": True}
    ids = token_ids(server, prompt)
    assert generate(server, prompt, "living") == prompt.upper()  # its prefix is cached now
    undisturbed = grpc_text(server, input_ids=ids, **long)
    with GrpcStream(server, "multilora_llm", {"input_ids": ids, **long}) as stream:
        assert not stream.take()
        drop("rot13", folder / "living")
        administer(server, action="load", adapter_id="living")
        rot13 = str.maketrans("abcdefghijklmnopqrstuvwxyz", "nopqrstuvwxyzabcdefghijklm")
        assert generate(server, prompt, "living") == prompt.translate(rot13)
        assert administer(server, action="info", adapter_id="living")["running"] == 1
        assert stream.text() == undisturbed
    drop("upper", folder / "living")
    administer(server, action="load", adapter_id="living")
    assert generate(server, prompt, "living") == prompt.upper()
    assert metrics(server)["multilora_cached_prompt_tokens_total"] > 0


def test_a_chat_uses_the_template_of_its_adapter(server: TritonServer, folder: Path):
    drop("upper", folder / "greeter")
    template = "<|bos|>hello {{ messages[-1].content }}<|assistant|>"
    (folder / "greeter/chat_template.jinja").write_text(template)
    chat = {"text_input": json.dumps([{"role": "user", "content": "world"}]), "chat": True}
    for adapter_id, want in [("greeter", "HELLO WORLD"), ("upper", "WORLD"), ("", "world")]:
        body = {**chat, "adapter_id": adapter_id, "max_tokens": 50}
        status, answer = post(server, body)
        assert (status, answer.get("text_output")) == (200, want), answer


def test_added_tokens_without_embedding_are_no_reason_to_refuse(server: TritonServer, folder: Path):
    drop("upper", folder / "padded")
    (folder / "padded/added_tokens.json").write_text('{"[PAD]": 300}')
    assert generate(server, TEXT, "padded") == ANSWERS["upper"]
    assert any("adapter 'padded': its tokenizer adds" in line for line in server.log_tail(200))


@pytest.mark.parametrize(
    ("adapter_id", "code"),
    [
        ("../../etc", "INVALID_ARG"),
        ("/etc", "INVALID_ARG"),
        ("team/../team/reverse", "INVALID_ARG"),
        ("team\\reverse", "INVALID_ARG"),
        ("a\x00b", "INVALID_ARG"),
        ("link", "INVALID_ARG"),
        ("team", "NOT_FOUND"),
        ("x" * 5000, "INVALID_ARG"),
        ("org/adapter", "NOT_FOUND"),
        ("s3://bucket/adapter", "NOT_FOUND"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(
    server: TritonServer, folder: Path, adapter_id: str, code: str
):
    link = folder / "link"
    if not link.is_symlink():
        link.symlink_to(DEMO / "adapters/sql")
    status, refusal = post(server, {"text_input": TEXT, "adapter_id": adapter_id})
    assert status == 400
    assert refusal["error"].endswith(f"[{code}]"), refusal
    assert len(refusal["error"]) < 600


def test_models_are_those_that_can_answer(server: TritonServer, folder: Path) -> None:
    drop("upper", folder / "models/fine")
    drop("upper", folder / "models/dora")
    config = folder / "models/dora/adapter_config.json"
    good = config.read_text()
    config.write_text(json.dumps(json.loads(good) | {"use_dora": True}))
    with running_gateway(server) as url:

        def listed() -> set[str]:
            answer = requests.get(f"{url}/v1/models", timeout=SECONDS).json()
            return {model["id"] for model in answer["data"]}

        assert {"models/fine", "spin"} <= listed() and "models/dora" not in listed()
        refused = requests.get(f"{url}/v1/models/models/dora", timeout=SECONDS)
        assert refused.status_code == 404 and "DoRA" in refused.json()["error"]["message"]
        page = requests.get(f"{url}/adapters", timeout=SECONDS).json()["adapters"]
        (shown,) = (entry for entry in page if entry["id"] == "models/dora")
        assert shown["state"] == "failed" and "DoRA" in shown["error"]
        config.write_text(good)
        assert eventually(lambda: "models/dora" in listed(), True)
