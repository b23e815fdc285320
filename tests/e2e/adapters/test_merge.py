"""Merged adapters, Hub tokens and stops of requests whose adapters come from the Hub, through the
real server."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from launcher.triton.server import TritonServer
from support.e2e.adapters import administer, refusal
from support.e2e.triton import DEMO, demo_server, eventually, examples, generate, post
from support.fake.hub import HubServer

TOKEN = "hf_e2e-secret"
PRIVATE = "acme/private"
SLOW = "acme/slow"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(DEMO / "adapters/rot13", root / PRIVATE)
    shutil.copytree(DEMO / "adapters/upper", root / SLOW)
    with HubServer(root) as hub:
        hub.token = TOKEN
        yield hub


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def server(hub: HubServer, cache: Path) -> Iterator[TritonServer]:
    """Administration is off: merging and tokens are for whoever sends requests."""
    settings = {
        "ADAPTER_ADMIN": "off",
        "ADAPTER_ALLOW": "acme/*",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    with demo_server(**settings) as server:
        yield server


def merge(server: TritonServer, *ids: str, **fields: Any) -> dict[str, Any]:
    return administer(server, action="merge", merge=json.dumps({"ids": list(ids), **fields}))


def made(cache: Path) -> dict[str, float]:
    """Folder of a merge → when its weights were written."""
    files = (cache / "merged-adapters").glob("*/adapter_model.safetensors")
    return {path.parent.name: path.stat().st_mtime for path in files}


@pytest.mark.parametrize("winner", ["upper", "reverse"])
def test_all_weight_on_one_is_that_one(server: TritonServer, winner: str) -> None:
    weights = [float(name == winner) for name in ("upper", "reverse")]
    merged = merge(server, "upper", "reverse", weights=weights)
    for example in examples():
        if example.adapter_id == winner:
            assert generate(server, example.prompt, merged["id"]) == example.answer


def test_one_recipe_is_one_adapter_made_once(server: TritonServer, cache: Path) -> None:
    fields = {"merge_strategy": "dare_ties", "density": 0.7, "weights": [1, 0.8]}
    first = merge(server, "upper", "rot13", **fields)
    files = made(cache)
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(merge, server, "upper", "rot13", **fields) for _ in range(8)]
        assert {answer.result()["id"] for answer in answers} == {first["id"]}
    assert made(cache) == files
    text = generate(server, "hello world", first["id"], max_tokens=8, ignore_eos=True)
    assert text == generate(server, "hello world", first["id"], max_tokens=8, ignore_eos=True)
    listed = {entry["id"]: entry for entry in administer(server, action="list")["adapters"]}
    shown = listed[first["id"]]
    assert (shown["origin"], shown["requests"], shown["tokens"]) == ("merged", 2, 16)


def test_what_cannot_be_merged(server: TritonServer) -> None:
    unknown = refusal(server, action="merge", merge='{"ids": ["upper", "nobody"]}')
    assert unknown[0] == "NOT_FOUND" and "nobody" in unknown[1]
    wrong = refusal(server, action="merge", merge='{"ids": ["upper"], "merge_strategy": "svd"}')
    assert wrong[0] == "INVALID_ARG" and "linear, ties" in wrong[1]
    assert refusal(server, action="merge")[0] == "INVALID_ARG"


def test_a_chat_is_stopped_while_its_adapter_is_fetched(
    server: TritonServer, hub: HubServer
) -> None:
    """Its template comes with the adapter, so the engine has not heard of the request yet."""
    hub.fail(f"{SLOW}/adapter_config.json", "slow", times=1)
    chat = {
        "text_input": json.dumps([{"role": "user", "content": "hello world"}]), "chat": True,
        "adapter_id": SLOW, "adapter_token": TOKEN, "max_tokens": 50, "id": "early",
    }  # fmt: skip
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(post, server, chat)
        assert eventually(lambda: hub.hits[f"{SLOW}/adapter_config.json"], 1) == 1
        assert post(server, {"text_input": "x", "stop": True, "id": "early"})[0] == 200
        status, told = answer.result()
    assert status >= 400 and "request was cancelled [CANCELLED]" in told["error"]
    assert post(server, {**chat, "id": "late"})[1]["text_output"] == "HELLO WORLD"


def test_a_private_adapter_needs_the_token(server: TritonServer, hub: HubServer) -> None:
    body = {"text_input": "hello world", "adapter_id": PRIVATE, "max_tokens": 50}
    status, answer = post(server, body)
    assert status >= 400 and "adapter_token" in answer["error"]
    status, answer = post(server, {**body, "adapter_token": "hf_wrong"})
    assert status >= 400 and "NOT_FOUND" in answer["error"] and "hf_wrong" not in answer["error"]
    assert generate(server, "hello world", PRIVATE, adapter_token=TOKEN) == "uryyb jbeyq"
    assert TOKEN not in str(administer(server, action="list"))
    assert not any(TOKEN in line for line in server.log_tail())
