"""The launcher: a server that cannot start says why in one line, one that runs stops in order."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e_tools import DIRECT
from tiny_adapters import make_adapter
from triton_install import REPOSITORY, LaunchError
from triton_server import TritonServer
from triton_stubs import stubs

SERVE = [sys.executable, str(REPOSITORY / "scripts/serve.py")]
FREE_PORTS = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
SECONDS = 90.0


def start(*flags: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*SERVE, *FREE_PORTS, *flags],  # a later flag wins
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "THREADS": "1", "MODEL_ID": "", "LORA_ADAPTERS": ""},
        cwd=REPOSITORY.parent,
    )


@pytest.fixture
def serving() -> Iterator["subprocess.Popen[str]"]:
    process = start()
    yield process
    if process.poll() is None:
        process.terminate()
        process.wait(SECONDS)


def read_until_curl(process: "subprocess.Popen[str]") -> str:
    """The line of the example command, which comes last."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("curl"):
            return line
    raise AssertionError(f"no example command: {process.communicate()[1]}")


def child(process: "subprocess.Popen[str]") -> int:
    """The process id of its tritonserver."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(path.read_text().split()[0])


def stub(process: "subprocess.Popen[str]", model: str) -> int:
    """The process id in which its tritonserver runs a Python model."""
    return next(pid for pid, name in stubs(child(process)).items() if name == model)


def test_bad_settings_are_told_in_one_line(tmp_path: Path) -> None:
    make_adapter(tmp_path / "foreign")
    expected = {
        ("--dtype=int7",): "error: dtype must be one of auto, float32, bfloat16, float16; got",
        ("--model-id=./nowhere",): "nowhere': there is no such folder; check --model-id",
        (f"--lora-adapters=foreign={tmp_path}/foreign",): "error: adapter 'foreign'",
    }
    with ThreadPoolExecutor() as threads:
        ended = list(threads.map(lambda flags: _run(*flags), expected))
    for (code, stderr), (flags, message) in zip(ended, expected.items(), strict=True):
        assert code == 1, flags
        assert message in stderr.splitlines()[-1], flags


def test_taken_ports() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        code, stderr = _run(f"--grpc-port={port}")
    assert code == 1
    assert stderr.startswith(f"error: port {port} (--grpc-port) cannot be used: Address already")


def test_the_example_command_works_and_ctrl_c_stops_all(
    serving: "subprocess.Popen[str]",
) -> None:
    command = read_until_curl(serving)
    _, _, url, _, body = command.split(maxsplit=4)
    data = body.strip().strip("'").encode()
    with DIRECT.open(url, data, timeout=SECONDS) as answer:
        events = [json.loads(line[5:]) for line in answer if line.startswith(b"data:")]
    assert "".join(event["text_output"] for event in events)
    server = child(serving)
    serving.send_signal(signal.SIGINT)
    assert serving.wait(SECONDS) == 0
    assert not Path(f"/proc/{server}").exists()


@pytest.mark.parametrize(
    ("victim", "message"),
    [
        ("", "error: the Triton server died with exit code -9"),
        ("multilora_llm", "error: the process of the Triton model multilora_llm died"),
    ],
)
def test_a_dead_process_ends_the_launcher(
    serving: "subprocess.Popen[str]", victim: str, message: str
) -> None:
    read_until_curl(serving)
    server = child(serving)
    processes = [server, *stubs(server)]
    os.kill(stub(serving, victim) if victim else server, signal.SIGKILL)
    _, stderr = serving.communicate(timeout=SECONDS)
    assert serving.returncode == 1
    assert stderr.splitlines()[-1].startswith(message)
    assert not any(_alive(pid) for pid in processes)


def test_python_api_raises(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="does not exist"):
        TritonServer(model_repository=tmp_path / "none").start()


def _alive(pid: int) -> bool:
    """False for a zombie too: an orphan's remains are its new parent's to bury."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text() != ""
    except (FileNotFoundError, ProcessLookupError):
        return False


def _run(*flags: str) -> tuple[int, str]:
    process = start(*flags)
    _, stderr = process.communicate(timeout=SECONDS)
    return process.returncode, stderr
