"""What a client reads when the server ends before its answer."""

import asyncio
import json
import threading
from typing import Any

import pytest

from multilora_gateway.http.answer_headers import AnswerHeaders
from multilora_gateway.http.last_answers import LastAnswers
from support.gateway.serving import GET, rest_of, serving, statuses


def test_a_request_that_is_cut_off_is_told_so() -> None:
    waiting = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        waiting.set()
        await asyncio.Event().wait()

    server = serving(LastAnswers(app), timeout_graceful_shutdown=0.1)
    with server as served, served.connect() as client:
        client.sendall(GET)
        assert waiting.wait(10)
        served.server.should_exit = True
        answer = rest_of(client)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert statuses(answer) == [503] and b"\r\nretry-after: " in head
    assert json.loads(body) == {
        "error": "the server is stopping; try again",
        "error_type": "unavailable",
    }


def test_a_defect_is_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """And the answer has what every answer has."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    with serving(AnswerHeaders(LastAnswers(app), strict=False)) as served:
        ask = GET.replace(b"\r\n\r\n", b"\r\nX-Request-Id: mine\r\nConnection: close\r\n\r\n")
        answer = served.answer(ask)
    assert statuses(answer) == [500] and b"\r\nx-request-id: mine\r\n" in answer
    assert b"internal error" in answer
    assert [record.getMessage() for record in caplog.records] == ["request mine failed"]
