"""Folders and Hub downloads, against a real HTTP hub on loopback with real huggingface_hub."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.fake.hub import HubServer

_CODE = """
import sys
from multilora.adapters.naming.source import AdapterSource
from multilora.config import EngineConfig
from multilora.errors import RequestError, StartupError
from multilora.download.folder import adapter_folder
from multilora.startup.base_folder import base_folder
kind, location, revision = sys.argv[1:]
try:
    if kind == "base":
        print("OK", base_folder(EngineConfig(model_id=location, revision=revision)))
    else:
        print("OK", adapter_folder(AdapterSource("x", location, revision)))
except RequestError as error:
    print(error.code.value, error.message)
except StartupError as error:
    print("STARTUP", error)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    repo = tmp_path / "hub" / "org" / "sql"
    repo.mkdir(parents=True)
    (repo / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (repo / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 64)
    (repo / "training_args.bin").write_bytes(b"not wanted")
    with HubServer(tmp_path / "hub") as server:
        yield server


def fetch(
    hub_url: str, cache: Path, kind: str, location: str, revision: str = "", **environ: str
) -> tuple[str, str]:
    """Run the loading code in a process of its own: huggingface_hub reads HF_* at import."""
    settings = {
        "HF_ENDPOINT": hub_url,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", _CODE, kind, location, revision],
        env=os.environ | settings | environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    code, _, message = done.stdout.strip().splitlines()[-1].partition(" ")
    return code, message


def test_download_lands_in_the_cache_and_works_offline(hub: HubServer, tmp_path: Path):
    code, folder = fetch(hub.url, tmp_path / "cache", "adapter", "org/sql")
    assert code == "OK"
    names = sorted(item.name for item in Path(folder).iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    assert (Path(folder) / "adapter_model.safetensors").stat().st_size == 256 * 64
    offline = fetch(
        "http://127.0.0.1:9", tmp_path / "cache", "adapter", "org/sql", HF_HUB_OFFLINE="1"
    )
    assert offline == ("OK", folder)
    assert hub.hits["org/sql/adapter_model.safetensors"] == 1


def test_what_is_missing_is_said(hub: HubServer, tmp_path: Path):
    cache = tmp_path / "cache"
    code, message = fetch(hub.url, cache, "adapter", "org/none")
    assert code == "NOT_FOUND" and "org/none" in message and "HF_TOKEN" in message
    code, message = fetch(hub.url, cache, "adapter", "org/sql", "missing")
    assert code == "NOT_FOUND" and "org/sql@missing" in message and "revision" in message
    code, message = fetch(hub.url, cache, "adapter", str(tmp_path / "nowhere"))
    assert code == "NOT_FOUND" and "no folder" in message
    code, message = fetch(hub.url, cache, "base", str(tmp_path / "nowhere"))
    assert code == "STARTUP" and "--model-id" in message
    code, message = fetch(hub.url, cache, "base", "org/none")
    assert code == "STARTUP" and "org/none" in message


def test_an_unreachable_hub_is_unavailable(tmp_path: Path):
    code, message = fetch("http://127.0.0.1:9", tmp_path / "cache", "adapter", "org/sql")
    assert code == "UNAVAILABLE" and "HF_ENDPOINT" in message


def test_two_processes_bring_it_once(hub: HubServer, tmp_path: Path):
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(fetch, hub.url, tmp_path / "cache", "adapter", "org/sql") for _ in range(2)
        ]
        first, second = (call.result() for call in calls)
    assert first == second and first[0] == "OK"
    assert hub.hits["org/sql/adapter_model.safetensors"] == 1


def test_private_repositories_need_the_token(hub: HubServer, tmp_path: Path):
    hub.token = "secret"
    code, message = fetch(hub.url, tmp_path / "cache", "adapter", "org/sql")
    assert code == "NOT_FOUND" and "HF_TOKEN" in message
    code, _ = fetch(hub.url, tmp_path / "cache", "adapter", "org/sql", HF_TOKEN="secret")
    assert code == "OK"
