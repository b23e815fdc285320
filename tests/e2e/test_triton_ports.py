"""What whoever reaches Triton's own ports can do there, and what they cannot."""

import socket
from pathlib import Path
from typing import Any

import pytest
import requests
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from launcher.triton.install import find_install
from launcher.triton.ports import CLOSED, restrictions
from launcher.triton.server import TritonServer
from support.e2e.triton import DEMO_SETTINGS, SECONDS, generate

FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"
HEAD = b"POST /v2/models/multilora/generate HTTP/1.1\r\nHost: x\r\n"
REGION = {"key": "/region", "offset": 0, "byte_size": 8}
HTTP_CALLS = [
    ("v2/systemsharedmemory/region/x/register", REGION),
    ("v2/cudasharedmemory/region/x/unregister", {}),
    ("v2/logging", {"log_verbose_level": 1}),
    ("v2/trace/setting", {"trace_level": ["TIMESTAMPS"]}),
    ("v2/models/multilora/trace/setting", {"trace_level": ["TIMESTAMPS"]}),
    ("v2/repository/models/tokenizer/unload", {}),
]
GRPC_CALLS = {
    "register_system_shared_memory": ("x", "/region", 8),
    "unregister_cuda_shared_memory": ("x",),
    "update_log_settings": ({"log_verbose_level": 1},),
    "update_trace_settings": ("multilora", {"trace_level": ["TIMESTAMPS"]}),
    "unload_model": ("tokenizer",),
}


@pytest.mark.parametrize("port", ["http", "metrics"])
def test_a_long_form_does_not_crash_the_server(server: TritonServer, port: str) -> None:
    length = 10_000_000
    head = HEAD + FORM + b"Content-Length: %d\r\n\r\n" % length
    answer = send(getattr(server.ports, port), head + b"x" * length)
    assert answer.startswith(b"HTTP/1.1 ")
    assert generate(server, "hello", "upper") == "HELLO"


def test_many_short_chunks_do_not_crash_the_server(server: TritonServer) -> None:
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert send(server.ports.http, head + b"1\r\nx\r\n" * 600_000 + b"0\r\n\r\n") != b""
    assert generate(server, "hello", "upper") == "HELLO"


def send(port: int, request: bytes) -> bytes:
    """The beginning of the answer; empty when the connection was closed without one."""
    with socket.create_connection(("localhost", port), timeout=SECONDS) as connection:
        connection.sendall(request)
        return connection.recv(100)


@pytest.mark.parametrize(("path", "body"), HTTP_CALLS, ids=[path for path, _ in HTTP_CALLS])
def test_what_writes_into_the_server_is_closed_over_http(
    server: TritonServer, path: str, body: Any
) -> None:
    flag = next(flag for flag in restrictions(()) if flag.startswith("--http"))
    name, _, secret = flag.partition(":")[2].partition("=")
    for headers in ({}, {name: ""}, {name: secret.strip()}):
        url = f"{server.http_url}/{path}"
        answer = requests.post(url, json=body, headers=headers, timeout=SECONDS)
        assert answer.status_code == 403 and "restricted" in answer.text


@pytest.mark.parametrize("call", GRPC_CALLS)
def test_what_writes_into_the_server_is_closed_over_grpc(server: TritonServer, call: str) -> None:
    client = triton.InferenceServerClient(server.grpc_address)
    try:
        with pytest.raises(InferenceServerException, match="restricted"):
            getattr(client, call)(*GRPC_CALLS[call])
    finally:
        client.close()


def test_what_only_tells_is_open(server: TritonServer) -> None:
    for path in ("v2", "v2/health/ready", "v2/models/multilora", "v2/models/multilora/config",
                 "v2/models/stats"):  # fmt: skip
        assert requests.get(f"{server.http_url}/{path}", timeout=SECONDS).ok, path


def test_texts_of_requests_cannot_be_read_by_others(server: TritonServer) -> None:
    files = list(Path("/dev/shm").glob(f"{server._shm_prefix}*"))
    assert len(files) >= 2, "the server has no shared memory of that name"
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


ONCE = """#!/bin/sh
if ! [ -e {folder}/lost ]; then
    touch {folder}/lost
    echo "terminate called after throwing an instance of 'boost::interprocess::lock_exception'"
    exit 134
fi
export LD_LIBRARY_PATH={libraries}
exec {binary} "$@"
"""


def test_apis_can_be_opened_and_a_start_that_lost_a_lock_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = find_install()
    libraries = install.environment["LD_LIBRARY_PATH"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "backends").symlink_to(install.backends)
    program = tmp_path / "bin/tritonserver"
    program.write_text(ONCE.format(folder=tmp_path, libraries=libraries, binary=install.binary))
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}:{install.environment['PATH']}")
    with TritonServer(DEMO_SETTINGS, open_apis=CLOSED) as server:
        server.wait_ready(timeout=120)
        assert (tmp_path / "lost").exists()
        for path in ("v2/systemsharedmemory/status", "v2/logging", "v2/trace/setting"):
            assert requests.get(f"{server.http_url}/{path}", timeout=SECONDS).ok, path
