"""The engine's process dies and the Triton server does not notice: the gateway does."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from launcher.triton.server import TritonServer
from launcher.triton.stubs import stubs
from support.e2e.gateway import running_gateway
from support.e2e.tgi import SECONDS, ask, post
from support.e2e.triton import DEMO_SETTINGS

LONG = {"ignore_eos_token": True, "max_new_tokens": 900}


def process_of(server: TritonServer, model: str) -> int:
    """The process id of a Triton model; the server is a child of ours, known by its port."""
    flag = f"--grpc-port={server.ports.grpc}"
    children = (file.read_text() for file in Path("/proc/self/task").glob("*/children"))
    for pid in map(int, " ".join(children).split()):
        if flag in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
            return next(stub for stub, name in stubs(pid).items() if name == model)
    raise AssertionError(f"no child of ours has {flag}")


@pytest.fixture
def doomed() -> Iterator[TritonServer]:
    with TritonServer(DEMO_SETTINGS) as server:
        server.wait_ready(timeout=120)
        yield server


def test_a_dead_engine_is_told_of(doomed: TritonServer) -> None:
    with ThreadPoolExecutor() as pool, running_gateway(doomed) as url:
        assert requests.get(f"{url}/health", timeout=SECONDS).status_code == 200
        whole = pool.submit(ask, url, **LONG)
        body = {"inputs": "hello world", "parameters": LONG}
        lines = post(url, "/generate_stream", body, stream=True).iter_lines()
        assert next(lines).startswith(b"data:")
        os.kill(process_of(doomed, "multilora_llm"), signal.SIGKILL)
        began = time.monotonic()

        assert requests.get(f"{url}/health", timeout=SECONDS).status_code == 503
        for path in ("/generate", "/generate_stream"):
            assert_unavailable(ask(url, path))
        last = json.loads([line for line in lines if line][-1].removeprefix(b"data:"))
        assert last["error_type"] == "unavailable"  # the Triton server may have died of it, too
        assert_unavailable(whole.result())
        assert time.monotonic() - began < 40  # it used to be for ever


def assert_unavailable(answer: requests.Response) -> None:
    assert answer.status_code == 503 and answer.json()["error_type"] == "unavailable"
    assert int(answer.headers["Retry-After"]) > 0
