"""Signs of life, HEAD and SageMaker's routes: a gateway before a real server, and before none."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import requests

from support.e2e.tgi import SECONDS, post

LIFE = ("/health", "/ping", "/")
PARAMETERS = {"adapter_id": "upper", "max_new_tokens": 30}


@pytest.fixture(scope="module")
def lonely() -> Iterator[str]:
    """The URL of a gateway without a Triton server."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"127.0.0.1:{unused.getsockname()[1]}"
    command = [sys.executable, "-m", "multilora_gateway", "--port=0", f"--triton-url={url}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().removeprefix("ready: ").strip()
        process.terminate()


@pytest.mark.parametrize("path", LIFE)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_signs_of_life(gateway: str, lonely: str, method: str, path: str) -> None:
    answer = requests.request(method, gateway + path, timeout=SECONDS)
    assert (answer.status_code, answer.content) == (200, b"")
    dead = requests.request(method, lonely + path, timeout=SECONDS)
    assert dead.status_code == 503 and int(dead.headers["Retry-After"]) > 0
    assert bool(dead.content) == (method == "GET")


def test_the_page_is_there_without_a_server(lonely: str) -> None:
    answer = requests.get(lonely, headers={"Accept": "text/html"}, timeout=SECONDS)
    assert answer.status_code == 200 and answer.text.startswith("<!doctype html>")


def test_the_process_checks_what_comes_in(lonely: str) -> None:
    page = requests.get(lonely, headers={"Host": "evil.example"}, timeout=SECONDS)
    assert page.status_code == 403 and "--allowed-hosts evil.example " in page.json()["error"]
    headers = {f"X-{number}": "" for number in range(200)}
    refused = requests.get(lonely, headers=headers, timeout=SECONDS)
    assert refused.status_code == 431 and refused.json()["error_type"] == "validation"
    form = requests.post(f"{lonely}/generate", data='{"inputs": "a"}', timeout=SECONDS)
    assert form.status_code == 415


@pytest.mark.parametrize("path", ["/info", "/metrics"])
def test_head_is_get_without_a_body(gateway: str, path: str) -> None:
    whole = requests.get(gateway + path, timeout=SECONDS)
    answer = requests.head(gateway + path, timeout=SECONDS)
    assert answer.status_code == 200 and answer.content == b""
    assert answer.headers["Content-Type"] == whole.headers["Content-Type"]


@pytest.mark.parametrize("path", ["/", "/invocations"])
def test_the_text_begins_with_the_prompt_unless_told_otherwise(gateway: str, path: str) -> None:
    body = {"inputs": "hello world", "parameters": PARAMETERS}
    (answer,) = post(gateway, path, body).json()
    assert answer["generated_text"] == "hello worldHELLO WORLD"
    assert (
        '"generated_text":"hello worldHELLO WORLD"'
        in post(gateway, path, {**body, "stream": True}).content.decode()
    )
    told = {**PARAMETERS, "return_full_text": False}
    (answer,) = post(gateway, path, {**body, "parameters": told}).json()
    assert answer["generated_text"] == "HELLO WORLD"
    (answer,) = post(gateway, path, {"inputs": "hello world"}).json()
    assert answer["generated_text"] == "hello world" * 2


def test_invocations_take_chats_and_completions(gateway: str) -> None:
    messages = [{"role": "user", "content": "hello world"}]
    chat = post(gateway, "/invocations", {"model": "upper", "messages": messages}).json()
    assert chat["choices"][0]["message"]["content"] == "HELLO WORLD"
    body = {"model": "upper", "prompt": "hello world", "max_tokens": 30}
    answer = post(gateway, "/invocations", body).json()
    assert answer["choices"][0]["text"] == "HELLO WORLD"
