"""The gateway before a real Triton server: access, limits, clients that vanish, servers that do."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
import requests

from launcher.triton.server import TritonServer
from support.e2e.gateway import ADMIN_KEY, running_gateway
from support.e2e.triton import DEMO_SETTINGS, demo_server, eventually, metrics, wait_until_idle

SECONDS = 60
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
MOST = 900  # tokens of an answer that nobody waits for
OF_TGI = {"inputs": "hello", "parameters": {"max_new_tokens": MOST, "ignore_eos_token": True}}
OF_RESPONSES = {"input": "hello", "max_output_tokens": MOST, "ignore_eos": True, "stream": True}
SAID = [{"role": "user", "content": "hello"}]
OF_MESSAGES = {"messages": SAID, "max_tokens": MOST, "ignore_eos": True}


def generate(url: str, inputs: str = "hello world", **parameters: Any) -> requests.Response:
    headers = parameters.pop("headers", {})
    body = {"inputs": inputs, "parameters": {"max_new_tokens": 30, **parameters}}
    return requests.post(f"{url}/generate", json=body, headers=headers, timeout=SECONDS)


def running(server: TritonServer) -> float:
    return metrics(server)["multilora_running_requests"]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/generate", OF_TGI),
        ("/generate_stream", OF_TGI),
        ("/v1/responses", OF_RESPONSES),
        ("/v1/messages", OF_MESSAGES),
    ],
)
def test_a_client_that_goes_frees_its_sequence(
    server: TritonServer, gateway: str, path: str, asked: dict[str, Any]
) -> None:
    host, port = gateway.removeprefix("http://").split(":")
    body = json.dumps(asked).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    before = metrics(server)["multilora_generated_tokens_total"]
    with socket.create_connection((host, int(port)), SECONDS) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert eventually(lambda: running(server), 1) == 1
    assert eventually(lambda: running(server), 0) == 0
    wait_until_idle(server)
    assert metrics(server)["multilora_generated_tokens_total"] - before < MOST


def test_adapters_over_http(gateway: str) -> None:
    listed = requests.get(f"{gateway}/adapters", timeout=SECONDS).json()
    assert {"sql", "upper"} <= {entry["id"] for entry in listed["adapters"]}
    assert listed["admin"] is True

    def post(path: str, body: dict[str, Any], headers: dict[str, str]) -> requests.Response:
        return requests.post(f"{gateway}{path}", json=body, headers=headers, timeout=SECONDS)

    source = next(e["source"] for e in listed["adapters"] if e["id"] == "rot13")
    assert post("/adapters/unload", {"adapter_id": "rot13"}, {}).status_code == 401
    assert post("/adapters/unload", {"adapter_id": "rot13"}, ADMIN).json()["freed_pages"] > 0
    assert generate(gateway, adapter_id="rot13").status_code == 404
    body = {"lora_name": "rot13", "lora_path": source}
    assert post("/v1/load_lora_adapter", body, {}).status_code == 401
    assert "added successfully" in post("/v1/load_lora_adapter", body, ADMIN).text
    again = post("/v1/load_lora_adapter", body, ADMIN)
    assert again.status_code == 400 and "already been loaded" in again.json()["error"]["message"]
    assert generate(gateway, adapter_id="rot13").json()["generated_text"] == "uryyb jbeyq"
    assert post("/adapters/pin", {"adapter_id": "rot13"}, ADMIN).json()["pinned"] is True
    unknown = post("/adapters/pin", {"adapter_id": "rot13", "adapter": "rot13"}, ADMIN)
    assert unknown.ok and unknown.headers["x-ignored-fields"] == "adapter"
    missing = post("/v1/unload_lora_adapter", {"lora_name": "nobody"}, ADMIN)
    assert missing.status_code == 404
    for status in (200, 404):
        gone = post("/v1/unload_lora_adapter", {"lora_name": "rot13"}, ADMIN)
        assert gone.status_code == status
    assert post("/v1/load_lora_adapter", body, ADMIN).ok


def test_keys(server: TritonServer) -> None:
    with running_gateway(server, API_KEY="open\nmine:sql,up*, jso") as url:
        assert generate(url).status_code == 401
        limited = {"Authorization": "Bearer mine"}
        assert generate(url, headers=limited).status_code == 200
        assert generate(url, headers=limited, adapter_id="upper").status_code == 200
        assert generate(url, headers=limited, adapter_id="rot13").status_code == 403
        misspelt = [generate(url, headers=limited, adapter_id=name) for name in ("uppr", "jso")]
        assert [answer.status_code for answer in misspelt] == [404, 404]
        told = [answer.json()["error"] for answer in misspelt]
        assert told[0].endswith("; did you mean 'upper'?") and "did you mean" not in told[1]
        listed = requests.get(f"{url}/adapters", headers=limited, timeout=SECONDS).json()
        assert {entry["id"] for entry in listed["adapters"]} == {"sql", "upper"}
        models = requests.get(f"{url}/v1/models", headers=limited, timeout=SECONDS).json()
        assert {model["id"] for model in models["data"]} == {"multilora-demo", "sql", "upper"}
        assert requests.get(f"{url}/health", timeout=SECONDS).status_code == 200


def test_bodies(server: TritonServer) -> None:
    with running_gateway(server, "--payload-limit", "1000") as url:
        assert generate(url, "x" * 2000).status_code == 413
        chunked = requests.post(f"{url}/generate", data=iter([b"x" * 700] * 3), timeout=SECONDS)
        assert chunked.status_code == 413
        for path, shape in (("/generate", str), ("/v1/completions", dict)):
            for body in (b'{"inputs": ', b"\xff\xfe", b"[1]", b"", b'{"prompt": 3}'):
                answer = requests.post(
                    url + path, data=body, headers={"Content-Type": "application/json"},
                    timeout=SECONDS,
                )  # fmt: skip
                assert answer.status_code in (400, 422), (path, body, answer.text)
                assert isinstance(answer.json()["error"], shape)
        assert generate(url).status_code == 200


def test_the_triton_server_may_come_and_go() -> None:
    with contextlib.ExitStack() as stack:
        with demo_server() as first:
            url = stack.enter_context(running_gateway(first))
            assert generate(url, adapter_id="upper").json()["generated_text"] == "HELLO WORLD"
        for answer in (generate(url), requests.get(f"{url}/health", timeout=SECONDS)):
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) > 0
        other = {**DEMO_SETTINGS, "MAX_TOTAL_TOKENS": "512", "MAX_INPUT_TOKENS": "256"}
        again = stack.enter_context(TritonServer(other, ports=first.ports))
        again.wait_ready(timeout=120)
        deadline = time.monotonic() + 30
        while (answer := generate(url)).status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert answer.json()["generated_text"] == "hello world"
        assert requests.get(f"{url}/info", timeout=SECONDS).json()["max_total_tokens"] == 512


def test_the_page_is_not_guessed_at(gateway: str) -> None:
    for path in ("/", "/page/page.js", "/page/page.css"):
        headers = {"Accept": "text/html"}
        answer = requests.get(f"{gateway}{path}", headers=headers, timeout=SECONDS)
        assert answer.ok and answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-cache"


def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "multilora_gateway", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: 127.0.0.1:{port} (--hostname, --port) cannot be ")


def test_metrics_tell_of_both(gateway: str) -> None:
    generate(gateway)
    text = requests.get(f"{gateway}/metrics", timeout=SECONDS).text
    assert 'gateway_requests_total{route="/generate",status="200"}' in text
    assert "multilora_generated_tokens_total" in text
