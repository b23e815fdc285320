"""What goes wrong at the TGI API of a gateway in front of a real server."""

import http.client
import json
from typing import Any

import lorax.types
import pytest
import requests

from launcher.triton.server import TritonServer
from support.e2e.tgi import SECONDS, ask, events, post
from support.e2e.triton import eventually, metrics, wait_until_idle


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_clients_that_vanish(gateway: str, server: TritonServer, path: str) -> None:
    """Their sequences end before they are complete."""
    before = metrics(server)["multilora_generated_tokens_total"]
    connection = http.client.HTTPConnection(gateway.removeprefix("http://"), timeout=SECONDS)
    body = {"inputs": "hello world", "parameters": {"ignore_eos_token": True}}
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    assert eventually(lambda: metrics(server)["multilora_running_requests"], 1) == 1
    connection.close()
    wait_until_idle(server)
    room = requests.get(f"{gateway}/info", timeout=SECONDS).json()["max_total_tokens"]
    assert metrics(server)["multilora_generated_tokens_total"] - before < 0.9 * room


def test_errors(gateway: str) -> None:
    unknown = ask(gateway, adapter_id="nobody")
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "not_found")
    (streamed,) = events(ask(gateway, "/generate_stream", adapter_id="nobody"))
    assert streamed == unknown.json()
    misspelt = ask(gateway, max_token=3)
    assert misspelt.json() == {"generated_text": "HELLO WORLD"}
    assert misspelt.headers["x-ignored-fields"] == "parameters.max_token"
    empty = post(gateway, "/generate", {"inputs": ""}).json()
    assert empty["error"] == "Input validation error: `inputs` cannot be empty"


_ODD = (None, True, -1, 10**30, 0.5, "", "\ud800", "a", [], [None], {}, {"type": "json"})


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/", "/invocations"])
def test_bad_input_is_never_our_fault(gateway: str, path: str) -> None:
    names = [*lorax.types.Parameters.model_fields, "grammar", "top_n_tokens", "frequency_penalty"]
    bodies: list[Any] = [*_ODD, *({"inputs": odd} for odd in _ODD)]
    bodies += [{"inputs": "a", "parameters": odd} for odd in _ODD]
    bodies += [
        {"inputs": "a", "parameters": {"max_new_tokens": 1, name: odd}}
        for name in names
        for odd in _ODD
    ]
    for body in bodies:
        answer = post(gateway, path, body)
        assert answer.status_code in (200, 404, 422), (body, answer.text)
        if answer.status_code != 200:
            assert {"error", "error_type"} == set(answer.json())
    for raw in (b"", b"{", b"\xff", b"[" * 100_000, b'{"inputs": NaN}', b"1" * 5000):
        headers = {"Content-Type": "application/json"}
        answer = requests.post(f"{gateway}{path}", data=raw, headers=headers, timeout=SECONDS)
        assert answer.status_code in (400, 422), (raw[:20], answer.text)
