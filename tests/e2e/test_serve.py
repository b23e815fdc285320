"""The launcher: a server that cannot start says why in one line, one that runs stops in order."""

import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from launcher.process import LaunchError
from launcher.triton.server import TritonServer
from launcher.triton.stubs import stubs
from support.e2e.launcher import SECONDS, children, start_launcher
from support.e2e.triton import DEMO, DIRECT
from support.processes import assert_end
from support.tiny.adapters import make_adapter


@pytest.fixture
def serving() -> Iterator["subprocess.Popen[str]"]:
    process = start_launcher()
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
    return children(process.pid)[0]


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
        assert stderr.endswith(" (--log-verbose shows the whole log)\n"), flags
        assert "last lines of the server log" not in stderr, flags


def test_taken_ports() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        code, stderr = _run(f"--grpc-port={port}")
    assert code == 1
    assert stderr.startswith(f"error: port {port} (--grpc-port) cannot be used: Address already")


def test_what_the_gateway_would_refuse_is_told_before_a_model_is_loaded() -> None:
    with socket.create_server(("", 0)) as taken:
        flag = f"--port={taken.getsockname()[1]}"
        code, stderr = _run(flag)
    assert code == 1 and len(stderr.splitlines()) == 1
    assert stderr.startswith(f"error: 127.0.0.1:{flag[7:]} (--hostname, --port) cannot be used")
    code, stderr = _run("--api-key=")
    assert code == 2 and "serve.py: error: --api-key is empty" in stderr.splitlines()[-1]


def test_the_example_command_works_and_ctrl_c_stops_all(
    serving: "subprocess.Popen[str]",
) -> None:
    _, _, url, _, kind, _, body = shlex.split(read_until_curl(serving))
    request = urllib.request.Request(url, body.encode(), dict([kind.split(": ")]))
    with DIRECT.open(request, timeout=SECONDS) as answer:
        events = [json.loads(line[5:]) for line in answer if line.startswith(b"data:")]
    assert events[-1]["generated_text"] == "HELLO WORLD"
    server = child(serving)
    serving.send_signal(signal.SIGINT)
    assert serving.wait(SECONDS) == 0
    assert not Path(f"/proc/{server}").exists()


def test_idle_connections_do_not_hold_up_the_end(serving: "subprocess.Popen[str]") -> None:
    """A client that keeps its connection for the next request, as most do."""
    assert serving.stdout is not None
    ready = next(line for line in serving.stdout if "ready:" in line)
    address = ready.partition("Triton HTTP http://")[2].split()[0]
    client = http.client.HTTPConnection(address, timeout=SECONDS)
    client.request("GET", "/v2/health/ready")
    assert client.getresponse().read() == b""
    serving.send_signal(signal.SIGINT)
    start = time.monotonic()
    stdout, _ = serving.communicate(timeout=SECONDS)
    client.close()
    assert serving.returncode == 0 and time.monotonic() - start < 20
    assert "\nwaiting for clients to close their connections to Triton's HTTP port (1)" in stdout


def test_without_restarts_a_dead_process_ends_the_launcher_and_clients_are_told() -> None:
    process = start_launcher("--no-restart")
    try:
        url = shlex.split(read_until_curl(process))[2]
        processes = [child(process), *(found := stubs(child(process)))]
        body = {"inputs": "hello", "parameters": {"ignore_eos_token": True, "max_new_tokens": 900}}
        lines = requests.post(url, json=body, stream=True, timeout=SECONDS).iter_lines()
        assert next(lines).startswith(b"data:")
        os.kill(next(pid for pid in found if found[pid] == "multilora_llm"), signal.SIGKILL)
        last = json.loads([line for line in lines if line][-1].removeprefix(b"data:"))
        assert last["error_type"] == "unavailable"
        _, stderr = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 1
    assert stderr.splitlines()[-1].startswith(
        "error: the process of the Triton model multilora_llm died"
    )
    assert_end(*processes)


# As a guide to TGI gives it, for the folder of the demo's base model.
GUIDE = "--max-batch-prefill-tokens 4096 --max-input-length 2048 --max-total-tokens 4096"


def test_a_command_line_of_tgi() -> None:
    flags = ["--model-id", str(DEMO / "base"), *GUIDE.split(), "--num-shard", "1", "--api-key=k"]
    flags.append("--no-restart")
    process = start_launcher(*flags, f"--lora-adapters=upper={DEMO}/adapters/upper")
    try:
        assert process.stdout is not None
        said = list(iter(process.stdout.readline, "\n"))
        _, _, url, *_ = shlex.split(read_until_curl(process))
        api = url.removesuffix("_stream")
        data = {"inputs": "hello world", "parameters": {"adapter_id": "upper"}}
        headers = {"Content-Type": "application/json"}
        without = requests.post(api, json=data, headers=headers, timeout=SECONDS)
        assert without.status_code == 401
        headers["Authorization"] = "Bearer k"
        answer = requests.post(api, json=data, headers=headers, timeout=SECONDS)
        assert answer.json() == {"generated_text": "HELLO WORLD"}
        gateway = next(pid for pid in children(process.pid) if "multilora_gateway" in command(pid))
        os.kill(gateway, signal.SIGKILL)
        _, stderr = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert "warning: --num-shard has no effect here; leave it out" in stderr
    assert any("warning: max_total_tokens 4096 exceeds the base model's" in line for line in said)
    assert stderr.splitlines()[-1].startswith("error: the gateway died with exit code -9")
    assert "last lines of the server log" not in stderr


def test_unknown_flags_are_errors() -> None:
    code, stderr = _run("--max-input-lenght=7")
    assert code == 2
    assert "unknown argument --max-input-lenght=7; did you mean --max-input-length?" in stderr


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_python_api_raises(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="does not exist"):
        TritonServer(model_repository=tmp_path / "none").start()


def _run(*flags: str) -> tuple[int, str]:
    process = start_launcher(*flags)
    _, stderr = process.communicate(timeout=SECONDS)
    return process.returncode, stderr
