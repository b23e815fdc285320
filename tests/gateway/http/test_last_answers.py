"""What a client reads when the server ends before its answer."""

import asyncio
import json
import threading
from typing import Any

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
