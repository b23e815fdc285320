"""A server with an admin key: everybody may look, only who has the key may change."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import requests

from launcher.triton.server import TritonServer
from multilora_client import InvalidRequest, MultiLoRAClient
from support.e2e.adapters import administer, refusal
from support.e2e.gateway import ADMIN_KEY, running_gateway
from support.e2e.triton import SECONDS, demo_server, post


@pytest.fixture(scope="module")
def locked() -> Iterator[TritonServer]:
    with demo_server(ADMIN_KEY=ADMIN_KEY) as server:
        yield server


def test_over_http_and_grpc(locked: TritonServer) -> None:
    assert administer(locked, action="info", adapter_id="sql")["id"] == "sql"
    body = {"action": "pin", "adapter_id": "sql"}
    for wrong in ({}, {"admin_key": "admin"}):
        status, answer = post(locked, {**body, **wrong}, model="adapters")
        assert status == 400 and "pin needs the admin key" in answer["error"]
        assert ADMIN_KEY not in answer["error"]
        assert refusal(locked, **body, **wrong)[0] == "INVALID_ARG"
    assert administer(locked, **body, admin_key=ADMIN_KEY)["pinned"] is True


def test_with_the_client(locked: TritonServer) -> None:
    with MultiLoRAClient(locked.grpc_address, timeout=60) as client:
        assert client.adapters.info("sql").id == "sql"
        with pytest.raises(InvalidRequest, match="unpin needs the admin key"):
            client.adapters.unpin("sql")
    with MultiLoRAClient(locked.grpc_address, timeout=60, admin_key=ADMIN_KEY) as client:
        assert not client.adapters.unpin("sql").pinned
        assert client.generate("hello world", adapter_id="upper").text == "HELLO WORLD"


@pytest.mark.parametrize("key", ["", ADMIN_KEY])
def test_on_the_command_line(locked: TritonServer, key: str) -> None:
    command = [sys.executable, "-m", "multilora_client.cli", "adapters", "unload", "rot13"]
    environ = {**os.environ, "MULTILORA_URL": locked.grpc_address, "ADMIN_KEY": key}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    if key:
        assert done.stdout.startswith("rot13: unloaded")
    else:
        assert done.returncode == 1 and "needs the admin key" in done.stderr


def test_the_gateway_passes_its_key_on(locked: TritonServer) -> None:
    with running_gateway(locked) as url:
        header = {"Authorization": f"Bearer {ADMIN_KEY}"}
        for path in ("pin", "unpin"):
            answer = requests.post(
                f"{url}/adapters/{path}", json={"adapter_id": "json"}, headers=header,
                timeout=SECONDS,
            )  # fmt: skip
            assert answer.json()["pinned"] is (path == "pin")
