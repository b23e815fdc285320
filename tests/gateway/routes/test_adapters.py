"""vLLM's way to load an adapter, before a Triton server that knows every name."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from multilora_gateway.app import create_app
from multilora_gateway.http.metrics import GatewayMetrics
from multilora_gateway.settings import Settings
from support.fake.adapters import FakeAdapters
from support.gateway.serving import Served, serving, statuses


@pytest.fixture(scope="module")
def server() -> Iterator[FakeAdapters]:
    server = FakeAdapters()
    yield server
    server.close()


@pytest.fixture(scope="module")
def gateway(server: FakeAdapters) -> Iterator[Served]:
    settings = Settings(triton_url=server.url, admin_key="root")
    with serving(create_app(settings, ("*",), GatewayMetrics("")), lifespan="on") as served:
        yield served


@pytest.mark.parametrize(
    ("name", "fields", "status", "asked"),
    [
        ("sql", {}, 400, ["info"]),
        ("sql", {"load_inplace": True}, 200, ["load"]),
        ("allowed", {}, 200, ["info", "load"]),  # on the disk, so far
        ("NOT_FOUND", {}, 404, ["info", "load"]),  # the load itself says what is wrong
        ("INVALID_ARG", {}, 400, ["info", "load"]),
        ("UNAVAILABLE", {}, 503, ["info"]),
    ],
)
def test_what_is_in_memory_is_loaded_in_place_alone(
    server: FakeAdapters,
    gateway: Served,
    name: str,
    fields: dict[str, Any],
    status: int,
    asked: list[str],
) -> None:
    server.received.clear()
    body = json.dumps({"lora_name": name, "lora_path": "/adapters/x", **fields}).encode()
    head = (
        "POST /v1/load_lora_adapter HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        "Content-Type: application/json\r\nAuthorization: Bearer root\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    assert statuses(gateway.answer(head.encode() + body)) == [status]
    actions = [inputs["action"][0] for _, _, inputs in server.received]
    assert [action for action in actions if action != "list"] == asked
