"""The launcher starts again what dies, and takes everything with it when it is killed itself."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from launcher.triton.stubs import stubs
from support.e2e.launcher import SECONDS, children, start_launcher
from support.e2e.tgi import ask, post
from support.processes import assert_end

LONG = {"ignore_eos_token": True, "max_new_tokens": 900}
STREAM = {"inputs": "hello world", "parameters": LONG}


@dataclass(frozen=True)
class Launcher:
    """A running launcher and the addresses that it told at its start."""

    process: "subprocess.Popen[str]"
    gateway: str
    triton: str

    def child(self, program: str) -> int:
        """The process id of `program`, which the launcher has started."""
        return next(pid for pid in children(self.process.pid) if program in command(pid))

    def tree(self) -> set[int]:
        """Every process that the launcher, and those below it, have started."""
        found, new = set[int](), {self.process.pid}
        while new:
            new = {child for pid in new for child in children(pid)} - found
            found |= new
        return found


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    process = start_launcher()
    assert process.stdout is not None
    try:
        ready = next(line for line in process.stdout if "ready:" in line)
        _, _, said = ready.partition("ready: gateway ")
        yield Launcher(process, said.split()[0], said.split()[3])
    finally:
        process.kill()
        process.wait()


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def stub(launcher: Launcher, model: str = "multilora_llm") -> int:
    server = launcher.child("tritonserver")
    return next(pid for pid, name in stubs(server).items() if name == model)


def until(condition: Callable[[], bool], seconds: float = SECONDS) -> float:
    """Seconds until `condition` holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - began


def answers(launcher: Launcher) -> bool:
    try:
        answer = ask(launcher.gateway)
    except requests.ConnectionError:
        return False
    return answer.status_code == 200 and answer.json() == {"generated_text": "HELLO WORLD"}


def test_a_dead_gateway_is_started_again_alone(launcher: Launcher) -> None:
    server, victim = launcher.child("tritonserver"), launcher.child("multilora_gateway")
    os.kill(victim, signal.SIGKILL)
    until(lambda: answers(launcher))
    assert launcher.child("multilora_gateway") != victim
    assert launcher.child("tritonserver") == server


def test_a_dead_engine_is_told_at_once_and_started_again(launcher: Launcher) -> None:
    url, gateway = launcher.gateway, launcher.child("multilora_gateway")
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(ask, url, **LONG)
        stream = post(url, "/generate_stream", STREAM, stream=True)
        lines = stream.iter_lines()
        assert next(lines).startswith(b"data:")
        began = time.monotonic()
        os.kill(stub(launcher), signal.SIGKILL)
        last = json.loads([line for line in lines if line][-1].removeprefix(b"data:"))
        assert last["error_type"] == "unavailable"
        assert_unavailable(whole.result())
        assert time.monotonic() - began < 4  # measured: 0.4 s
    for path in ("/generate", "/generate_stream"):
        assert_unavailable(ask(url, path))
    assert_unavailable(requests.get(f"{url}/health", timeout=SECONDS), "healthcheck")
    until(lambda: answers(launcher))
    assert requests.get(f"{url}/health", timeout=SECONDS).status_code == 200
    assert requests.get(f"{launcher.triton}/v2/health/ready", timeout=SECONDS).status_code == 200
    assert launcher.child("multilora_gateway") == gateway


def assert_unavailable(answer: requests.Response, kind: str = "unavailable") -> None:
    assert (answer.status_code, answer.json()["error_type"]) == (503, kind)
    assert int(answer.headers["Retry-After"]) > 0


def test_a_stopped_engine_goes_on_or_is_started_again(launcher: Launcher) -> None:
    victim = stub(launcher)
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(ask, launcher.gateway, **LONG) for _ in range(4)]
        time.sleep(0.3)
        os.kill(victim, signal.SIGSTOP)
        time.sleep(4)
        os.kill(victim, signal.SIGCONT)
        assert {call.result().status_code for call in running} <= {200, 503}
    until(lambda: answers(launcher))


def test_nothing_outlives_a_killed_launcher(launcher: Launcher) -> None:
    tree = launcher.tree()
    assert len(tree) >= 4, "the launcher has no servers"
    launcher.process.kill()
    assert_end(*tree)
    for url in (launcher.gateway, launcher.triton):
        until(lambda url=url: is_free(int(url.rpartition(":")[2])), 10)


def is_free(port: int) -> bool:
    try:
        socket.create_server(("", port)).close()
    except OSError:
        return False
    return True
