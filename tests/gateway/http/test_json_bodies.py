"""Bodies that do not say that they are JSON, before the gateway's application."""

import json
from collections.abc import Iterator

import pytest

from multilora_gateway.app import create_app
from multilora_gateway.http.metrics import GatewayMetrics
from multilora_gateway.settings import Settings
from support.gateway.serving import Served, serving

BODY = b'{"inputs": ""}'
JSON = "Content-Type: application/json"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    settings = Settings(triton_url="127.0.0.1:9", admin_key="root")
    with serving(create_app(settings, ("*",), GatewayMetrics("")), lifespan="on") as served:
        yield served


def post(served: Served, path: str, *headers: str, body: bytes = BODY) -> tuple[int, str]:
    """→ (status, body)."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if not any(line.startswith("Transfer-Encoding") for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    answer = served.answer("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2].decode()


@pytest.mark.parametrize("path", ["/generate", "/", "/v1/chat/completions", "/invocations"])
@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ([], "is not given; send JSON with -H 'Content-Type: application/json'"),
        (["Content-Type: application/x-www-form-urlencoded"], "is application/x-www-form-url"),
        (["Content-Type: text/plain;charset=UTF-8"], "is text/plain; send JSON"),
        (["Content-Type: multipart/form-data; boundary=x"], "is multipart/form-data"),
        (["Content-Type: text/plain; application/json"], "is text/plain"),
        (["Content-Type: application/jsonp"], "is application/jsonp"),
        ([JSON, "Content-Type: text/plain"], "is application/json, text/plain"),
        ([JSON + "; charset=latin-1"], "the charset is latin-1; send UTF-8"),
        ([JSON, "Content-Encoding: gzip"], "the Content-Encoding is gzip; send the body plainly"),
    ],
)  # fmt: skip
def test_others_are_refused(gateway: Served, path: str, headers: list[str], told: str) -> None:
    status, text = post(gateway, path, *headers)
    assert status == 415
    error = json.loads(text)["error"]
    assert told in (error["message"] if path.startswith("/v1") else error)


@pytest.mark.parametrize(
    "kind",
    [
        "application/json", "Application/JSON", "application/json; charset=utf-8",
        'application/json;charset="UTF-8"', "application/json; profile=x",
        "application/vnd.api+json",
    ],
)  # fmt: skip
def test_json_is_taken(gateway: Served, kind: str) -> None:
    """As far as the Triton server, which is not there."""
    for path in ("/generate", "/v1/completions", "/invocations"):
        assert post(gateway, path, f"Content-Type: {kind}", body=b'{"prompt": "a"}')[0] in (
            422,
            503,
        )


def test_a_body_in_chunks_is_a_body(gateway: Served) -> None:
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    assert post(gateway, "/generate", "Transfer-Encoding: chunked", body=body)[0] == 415


def test_without_a_body_there_is_nothing_to_declare(gateway: Served) -> None:
    assert post(gateway, "/generate", body=b"")[0] == 422
    assert post(gateway, "/v1/completions", body=b"")[0] == 400


def test_a_form_changes_no_adapters(gateway: Served) -> None:
    """Not even with the admin's key."""
    key = "Authorization: Bearer root"
    status, _ = post(gateway, "/adapters/unload", key, body=b'{"adapter_id": "a"}')
    assert status == 415
