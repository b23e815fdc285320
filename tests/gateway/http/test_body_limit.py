"""Bodies that are too large: their clients are told so, over real connections."""

import asyncio
import http.client
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from multilora_gateway.http import body_limit
from multilora_gateway.http.body_limit import BodyLimit
from support.gateway.serving import serving

MOST = 2_000_000
TIMEOUT = 20


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the size of the body."""
    size = len((await receive())["body"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server with the limit."""
    with serving(BodyLimit(app, MOST)) as served:
        yield served.port


def post(port: int, body: Any, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    connection.request("POST", "/generate", body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.mark.parametrize("size", [2_100_000, 20_000_000])
def test_an_asynchronous_client_is_told(port: int, size: int) -> None:
    async def status() -> int:
        url = f"http://127.0.0.1:{port}/v1"
        async with openai.AsyncOpenAI(
            base_url=url, api_key="none", max_retries=0, timeout=TIMEOUT
        ) as client:
            with pytest.raises(openai.APIStatusError, match="--payload-limit") as caught:
                await client.completions.create(model="x", prompt="x" * size)
            return caught.value.status_code

    assert asyncio.run(status()) == 413


def test_the_limit_itself_is_taken_and_pieces_are_counted(port: int) -> None:
    bodies = (b"x" * MOST, iter([b"x" * 700_000] * 2), iter([b"x" * 700_000] * 5))
    whole, pieces, many = (post(port, body) for body in bodies)
    assert (whole, pieces) == ((200, b"2000000"), (200, b"1400000"))
    assert many[0] == 413 and json.loads(many[1])["error_type"] == "too_large"


@pytest.mark.parametrize(
    "headers",
    [{"Content-Length": "3000000", "Expect": "100-continue"}, {"Content-Length": str(10**12)}],
)
def test_nothing_is_read_of_what_its_client_holds_back_or_has_no_end(
    port: int, headers: dict[str, str]
) -> None:
    assert post(port, b"x", **headers)[0] == 413


def test_a_body_too_large_that_dribbles_in_is_too_large(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limit, "BODY_SECONDS", 0.2)
    assert post(port, b"x", **{"Content-Length": "3000000"})[0] == 413
