"""The names by which requests may call the gateway: its application, without a Triton server."""

import json
from collections.abc import Iterator

import pytest

from multilora_gateway.app import create_app
from multilora_gateway.http.host_check import allowed_hosts
from multilora_gateway.http.metrics import GatewayMetrics
from multilora_gateway.settings import Settings
from support.gateway.serving import Served, serving

LOCAL = ("localhost", "127.0.0.1", "::1", "127.0.0.1")
AWAY = "127.0.0.1:9"  # a Triton server that is not there


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    settings = Settings(triton_url=AWAY, allowed_hosts=("llm.example", "*.llm.example"))
    app = create_app(settings, allowed_hosts(settings, "127.0.0.1"), GatewayMetrics(""))
    with serving(app, lifespan="on") as served:
        yield served


def asked(served: Served, *hosts: str, path: str = "/openapi.json", version: str = "1.1") -> int:
    lines = [f"GET {path} HTTP/{version}", "Connection: close", *(f"Host: {h}" for h in hosts)]
    answer = served.answer("\r\n".join([*lines, "", ""]).encode("latin-1"))
    if b" 200 " not in answer[:20]:
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return int(answer.split()[1])


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LocalHost:8080", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8080",
        "llm.example", "a.LLM.example:443",
    ],
)  # fmt: skip
def test_own_names(gateway: Served, host: str) -> None:
    assert asked(gateway, host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example",
        "evil-llm.example", "192.0.2.1", "localhost.", "x", "*",
    ],
)  # fmt: skip
def test_other_names(gateway: Served, host: str) -> None:
    assert asked(gateway, host) == 403
    assert asked(gateway, host, path="/health") == 503  # a probe is answered


@pytest.mark.parametrize(
    "hosts",
    [
        (), ("localhost", "localhost"), ("localhost", "evil.example"), ("",), ("a b",), ("a:x",),
        ("user@localhost",), ("localhost/x",), ("[::1",),
    ],
)  # fmt: skip
def test_what_is_no_name(gateway: Served, hosts: tuple[str, ...]) -> None:
    assert asked(gateway, *hosts) == 400


def test_old_clients_need_no_name(gateway: Served) -> None:
    assert asked(gateway, version="1.0") == 200
    assert asked(gateway, "evil.example", version="1.0") == 403


def test_the_answer_says_what_to_do(gateway: Served) -> None:
    body = gateway.answer(b"GET /v1/models HTTP/1.1\r\nConnection: close\r\nHost: a.b:1\r\n\r\n")
    error = json.loads(body.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "permission_error" and "--allowed-hosts a.b " in error["message"]


@pytest.mark.parametrize(
    ("settings", "address", "allowed"),
    [
        (Settings(), "127.0.0.1", LOCAL),
        (Settings(hostname="localhost"), "127.0.0.1", (*LOCAL[:3], "localhost")),
        (Settings(hostname="::1"), "::1", (*LOCAL[:3], "::1")),
        (Settings(hostname="[::1]"), "::1", (*LOCAL[:3], "::1")),
        (Settings(admin_key="root"), "127.0.0.1", LOCAL),
        (Settings(api_keys=("key",)), "127.0.0.1", ("*",)),
        (Settings(hostname="0.0.0.0"), "0.0.0.0", ("*",)),
        (Settings(hostname="::"), "::", ("*",)),
        (Settings(api_keys=("key",), allowed_hosts=("a",)), "127.0.0.1", ("a", *LOCAL)),
        (Settings(hostname="10.0.0.1", allowed_hosts=("a",)), "10.0.0.1",
         ("a", *LOCAL[:3], "10.0.0.1")),
    ],
)  # fmt: skip
def test_when_it_is_checked(settings: Settings, address: str, allowed: tuple[str, ...]) -> None:
    assert allowed_hosts(settings, address) == allowed


def test_a_web_page_may_not_read_from_a_preflight(gateway: Served) -> None:
    """Nor from a request without one: no header lets its browser."""
    for head in ("OPTIONS /generate", "GET /openapi.json"):
        data = f"{head} HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n"
        data += "Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n"
        assert b"access-control" not in gateway.answer(data.encode()).lower()
