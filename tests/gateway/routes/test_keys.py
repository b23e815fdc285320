"""A key that is limited to adapters names no other one on any route, in any way to name one."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from multilora_gateway.app import create_app
from multilora_gateway.http.metrics import GatewayMetrics
from multilora_gateway.settings import Settings
from support.fake.adapters import FakeAdapters
from support.gateway.backend import description
from support.gateway.serving import SECONDS, Served, serving

SETTINGS = Settings(api_keys=("mine:upp*",))
SAID = [{"role": "user", "content": "hi"}]
TOLD = "this API key may not use adapter 'sql'; it is limited to upp*"
BY_MODEL = {"model": "sql"}
# A name that is allowed does not cover another one beside it.
BY_FIELD = {"model": "upper", "adapter_id": "sql"}
MERGED = {"merged_adapters": {"ids": ["upper", "sql"], "weights": [1, 1]}}
OF_CHATS = (BY_MODEL, BY_FIELD, MERGED)
OF_TGI = tuple({"parameters": each} for each in ({"adapter_id": "sql"}, MERGED))
# The routes that generate, or tell of tokens: a body, and the ways to name an adapter in it.
ROUTES: dict[str, tuple[dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "/": ({"inputs": "hi"}, (*OF_TGI, BY_MODEL)),
    "/generate": ({"inputs": "hi"}, (*OF_TGI, BY_MODEL)),
    "/generate_stream": ({"inputs": "hi"}, (*OF_TGI, BY_MODEL)),
    "/invocations": ({"messages": SAID}, OF_CHATS),
    "/v1/chat/completions": ({"messages": SAID}, OF_CHATS),
    "/v1/completions": ({"prompt": "hi"}, OF_CHATS),
    "/v1/responses": ({"input": "hi"}, OF_CHATS),
    "/v1/messages": ({"messages": SAID, "max_tokens": 1}, OF_CHATS),
    "/v1/messages/count_tokens": ({"messages": SAID}, OF_CHATS),
    "/tokenize": ({"prompt": "hi"}, OF_CHATS),
    "/detokenize": ({"tokens": [1]}, (BY_MODEL,)),
    "/chat_tokenize": ({"messages": SAID}, (BY_MODEL,)),
}


@pytest.fixture(scope="module")
def server() -> Iterator[FakeAdapters]:
    server = FakeAdapters(base=description("base"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def gateway(server: FakeAdapters) -> Iterator[Served]:
    settings = Settings(triton_url=server.url, api_keys=SETTINGS.api_keys)
    with serving(create_app(settings, ("*",), GatewayMetrics("")), lifespan="on") as served:
        yield served


def post(served: Served, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=SECONDS)
    try:
        sent = {"Content-Type": "application/json", **headers}
        connection.request("POST", path, json.dumps(body), sent)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read().removeprefix(b"data:"))
    finally:
        connection.close()


def check_form(path: str, answer: Any, kinds: tuple[str, str]) -> None:
    """`kinds`: OpenAI's type of the error, which is Anthropic's too, and TGI's."""
    if path.startswith("/v1/"):
        assert answer["error"]["type"] == kinds[0]
        assert (answer.get("type") == "error") == path.startswith("/v1/messages")
    else:
        assert answer["error_type"] == kinds[1]


def test_every_route_is_here() -> None:
    """The others change adapters, with the admin's key."""
    routes = create_app(SETTINGS, ("*",), GatewayMetrics("")).openapi()["paths"].items()
    posts = {path for path, methods in routes if "post" in methods}
    admins = {f"/adapters/{action}" for action in ("load", "unload", "pin", "unpin")}
    admins |= {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}
    assert posts == set(ROUTES) | admins


@pytest.mark.parametrize("path", ROUTES)
def test_another_adapter_is_refused_before_the_engine_hears_of_it(
    server: FakeAdapters, gateway: Served, path: str
) -> None:
    body, ways = ROUTES[path]
    server.received.clear()
    for way in ways:
        for header in ({"x-api-key": "mine"}, {"Authorization": "Bearer mine"}):
            status, answer = post(gateway, path, {**body, **way}, header)
            assert status == (200 if path == "/generate_stream" else 403), (way, answer)
            check_form(path, answer, ("permission_error", "forbidden"))
            assert TOLD in json.dumps(answer)
    assert "sql" not in repr(server.received)


@pytest.mark.parametrize("path", ROUTES)
def test_without_a_key_nothing_is_answered(gateway: Served, path: str) -> None:
    headers: list[dict[str, str]] = [{}, {"x-api-key": "upper"}, {"x-api-key": "mine:upp*"}]
    for header in headers:
        status, answer = post(gateway, path, ROUTES[path][0], header)
        assert status == 401
        check_form(path, answer, ("authentication_error", "unauthorized"))
