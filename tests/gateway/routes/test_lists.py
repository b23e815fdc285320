"""Lists of more adapters than one answer of the engine tells of."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from multilora_api.admin import MOST_LISTED
from multilora_gateway.app import create_app
from multilora_gateway.http.metrics import GatewayMetrics
from multilora_gateway.settings import Settings
from support.fake.adapters import ENTRIES, FakeAdapters
from support.gateway.backend import description
from support.gateway.serving import SECONDS, Served, serving

ON_DISK = 2 * MOST_LISTED + 500


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    server = FakeAdapters(base=description("base"), on_disk=ON_DISK)
    app = create_app(Settings(triton_url=server.url), ("*",), GatewayMetrics(""))
    with serving(app, lifespan="on") as served:
        yield served
    server.close()


def get(served: Served, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        return json.load(answer)
    finally:
        connection.close()


def test_models_are_all_listed(gateway: Served) -> None:
    told = [model["id"] for model in get(gateway, "/v1/models")["data"]]
    disk = [f"disk/{number:05}" for number in range(ON_DISK)]
    assert told[0] == "base"
    assert sorted(told) == sorted(
        ["base", *(entry["id"] for entry in ENTRIES if not entry["error"]), *disk]
    )


def test_the_page_gets_a_part_and_hears_of_the_rest(gateway: Served) -> None:
    told = get(gateway, "/adapters")
    assert told["more"] is True
    assert len(told["adapters"]) == len(ENTRIES) + MOST_LISTED + 1
