"""Heads, framing and slowness of requests, over real connections."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from multilora_gateway.http.connections import ConnectionLimits
from multilora_gateway.http.protocol import MOST_HEADERS, MOST_PIPELINED
from support.gateway.serving import GET, POST, Served, rest_of, serving, statuses, wait_for

SOON = 0.4  # the time-outs of `hasty`, in seconds
CHUNKED = b"Transfer-Encoding: chunked"
CLOSE = b"Connection: close\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HUGE = 20_000_000


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the path, the body and the names of headers. /slow is slow, /huge is huge."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(5 * SOON)
    names = [name.decode() for name, _ in scope["headers"]]
    text = json.dumps([scope["path"], body.decode(), names]).encode()
    if scope["path"] == "/huge":
        text = bytes(HUGE)
    head = {"headers": [(b"content-length", str(len(text)).encode())], "status": 200}
    await send({"type": "http.response.start", **head})
    await send({"type": "http.response.body", "body": text})


async def never_more() -> Any:
    return {"type": "http.request"}


async def fill(served: Served, send: Any) -> None:
    """Answers with more than a client that does not read takes."""
    (connection,) = served.server.server_state.connections
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while not connection.transport.get_write_buffer_size():
        await send({"type": "http.response.body", "body": bytes(1000), "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body"})


@pytest.fixture(scope="module")
def patient() -> Iterator[Served]:
    with serving(app) as served:
        yield served


@pytest.fixture(scope="module")
def hasty() -> Iterator[Served]:
    with serving(app, ConnectionLimits(head_seconds=SOON, write_seconds=SOON)) as served:
        yield served


def request(line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([line, b"Host: x", *headers, b"", body])


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return request(b"POST / HTTP/1.1", *headers, body=body)


def chunked(body: bytes) -> bytes:
    return post(CHUNKED, body=body)


REFUSED = {
    "two lengths": (post(b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"), 400),
    "one length twice": (post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"), 400),
    "a list of lengths": (post(b"Content-Length: 3, 3", body=b"abc"), 400),
    "a negative length": (post(b"Content-Length: -1", body=b"abc"), 400),
    "a length of 32 digits": (post(b"Content-Length: " + b"9" * 32, body=b"abc"), 400),
    "a space before the colon": (post(b"Content-Length : 3", body=b"abc"), 400),
    "a length and chunks": (post(b"Content-Length: 3", CHUNKED, body=b"0\r\n\r\n"), 400),
    "chunks and a length": (post(CHUNKED, b"Content-Length: 3", body=b"0\r\n\r\n"), 400),
    "chunks twice": (post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"), 400),
    "a coding that looks like chunks": (post(b"Transfer-Encoding: xchunked"), 501),
    "a coding below chunks": (post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501),
    "chunks in HTTP/1.0": (request(b"POST / HTTP/1.0", CHUNKED, body=b"0\r\n\r\n"), 400),
    "a negative chunk": (chunked(b"-3\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk with 0x": (chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk with bare LF": (chunked(b"3\nabc\n0\n\n"), 400),
    "a chunk of another size": (chunked(b"3\r\nabcd\r\n0\r\n\r\n"), 400),
    "an endless chunk extension": (chunked(b"3" + b";x=y" * 500_000), 400),
    "endless trailers": (chunked(b"3\r\nabc\r\n0\r\n" + b"X: y\r\n" * 200_000), 400),
    "a folded header": (request(b"GET / HTTP/1.1", b"X: a", b" b"), 400),
    "NUL in a value": (request(b"GET / HTTP/1.1", b"X: a\0b"), 400),
    "NUL in a name": (request(b"GET / HTTP/1.1", b"X\0: ab"), 400),
    "bare CR": (request(b"GET / HTTP/1.1", b"X: a\rb"), 400),
    "bare LF": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "another version": (request(b"GET / HTTP/1.2"), 400),
    "HTTP/2 in words": (request(b"GET / HTTP/2.0"), 505),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a URL as target": (request(b"GET http://x/ HTTP/1.1"), 400),
    "an address as target": (request(b"CONNECT x:80 HTTP/1.1"), 400),
    "* as target": (request(b"OPTIONS * HTTP/1.1"), 400),
    "other letters in the target": (request(b"GET /\xc3\xa4 HTTP/1.1"), 400),
    "a long target": (request(b"GET /" + b"x" * 20_000 + b" HTTP/1.1"), 414),
    "an endless target": (b"GET /" + b"x" * 500_000, 414),
    "many headers": (request(b"GET / HTTP/1.1", *[b"X: y"] * MOST_HEADERS), 431),
    "a long header": (request(b"GET / HTTP/1.1", b"X: " + b"y" * 70_000), 431),
    "an endless header": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 500_000, 431),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_taken(patient: Served, data: bytes, status: int) -> None:
    """A refusal is the only answer: what follows is not read."""
    answer = patient.answer(data + LAST)
    assert statuses(answer) == [status]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head and b"\r\nx-request-id: " in head
    assert set(json.loads(body)) == {"error", "error_type"}
    wait_for(lambda: not patient.requests and not patient.connections)


def test_openai_clients_get_their_form(patient: Served) -> None:
    answer = patient.answer(request(b"GET /v1/models HTTP/1.1", b"X: " + b"y" * 70_000))
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "invalid_request_error" and "65536 bytes" in error["message"]


@pytest.mark.parametrize(
    "piece", [b"X: " + b"y" * 1000 + b"\r\n", b"y" * 1000, b"\r\n"], ids=["many", "one", "none"]
)
def test_headers_without_end_are_not_stored(patient: Served, piece: bytes) -> None:
    """No more is read than what buffers on the way take."""
    start = b"" if piece == b"\r\n" else GET[:-2] + (b"" if b":" in piece else b"X: ")
    sent = 0
    with patient.connect() as client, pytest.raises(ConnectionError):
        client.sendall(start)
        while sent < 100_000_000:
            client.sendall(piece * (1_000_000 // len(piece)))
            sent += 1_000_000
    assert sent < 30_000_000


def test_trailers_and_chunk_extensions_change_nothing(patient: Served) -> None:
    body = b'3;a="b;c"\r\nabc\r\n1\r\nd\r\n0;x\r\nAuthorization: Bearer stolen\r\nX: y\r\n\r\n'
    with patient.connect() as client:
        client.sendall(chunked(body) + LAST)
        first, last = rest_of(client).split(b"HTTP/1.1 200 OK")[1:]
    assert json.loads(first.partition(b"\r\n\r\n")[2]) == [
        "/",
        "abcd",
        ["host", "transfer-encoding"],
    ]
    assert json.loads(last.partition(b"\r\n\r\n")[2])[0] == "/last"


def test_a_body_of_the_smallest_chunks_is_taken(patient: Served) -> None:
    answer = patient.answer(chunked(b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n") + LAST)
    assert statuses(answer) == [200, 200] and b"x" * 50_000 in answer


def test_pipelined_requests_are_answered_in_order(patient: Served) -> None:
    paths = ["/slow", *(f"/{number}" for number in range(MOST_PIPELINED - 2))]
    requests = b"".join(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode() for path in paths)
    answer = patient.answer(requests + LAST)
    told = [
        json.loads(part.partition(b"\r\n\r\n")[2])[0] for part in answer.split(b"HTTP/1.1 ")[1:]
    ]
    assert told == [*paths, "/last"]


@pytest.mark.parametrize(
    "more",
    [GET * (MOST_PIPELINED + 1), b"\0", GET[:-2] + b"X: " + b"y" * 500_000],
    ids=["many", "none", "large"],
)
def test_no_refusal_stands_between_answers(patient: Served, more: bytes) -> None:
    """The first request is still being answered when `more` comes."""
    assert patient.answer(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + more) == b""
    wait_for(lambda: not patient.connections)


def test_nothing_is_taken_after_a_request_to_close(patient: Served) -> None:
    assert statuses(patient.answer(LAST + GET)) == [200]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_an_upgrade_is_not_made(patient: Served, protocol: bytes) -> None:
    data = request(b"GET / HTTP/1.1", b"Connection: Upgrade", b"Upgrade: " + protocol)
    with patient.connect() as client:
        client.sendall(data)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        client.sendall(LAST)
        assert statuses(rest_of(client)) == [200]


def test_dribbling_connections_are_closed_while_others_are_served(hasty: Served) -> None:
    clients = [hasty.connect() for _ in range(300)]
    began = time.monotonic()
    longest, sent = 0.0, 0
    while hasty.connections:
        assert time.monotonic() - began < 15
        for client in clients:
            try:
                client.sendall(GET[sent : sent + 1])
            except ConnectionError:
                continue
        sent = min(sent + 1, 20)
        asked = time.monotonic()
        assert statuses(hasty.answer(LAST)) == [200]
        longest = max(longest, time.monotonic() - asked)
    assert longest < 2
    assert [statuses(rest_of(client)) for client in clients[:3]] == [[408]] * 3
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("before", "pieces"),
    [(b"", []), (b"", [b"\r\n"] * 3), (GET, [b"\r\n"] * 3), (GET, [b"G", b"E"])],
)
def test_a_request_that_never_comes_whole(
    hasty: Served, before: bytes, pieces: list[bytes]
) -> None:
    """Whether before it nothing came, or a whole one."""
    with hasty.connect() as client:
        client.sendall(before)
        if before:
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        for piece in pieces:
            client.sendall(piece)
            time.sleep(SOON / 4)
        assert statuses(rest_of(client)) == ([408] if b"G" in pieces else [])
    assert time.monotonic() - began < 10


def test_slow_answers_slow_bodies_and_idle_connections_are_left_alone(hasty: Served) -> None:
    with hasty.connect() as client:
        client.sendall(POST + b"Content-Length: 3\r\n\r\n")
        for piece in b"abc":
            time.sleep(SOON / 2)
            client.sendall(bytes([piece]))
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        time.sleep(1.5 * SOON)
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + LAST[:10])
        time.sleep(1.5 * SOON)
        client.sendall(LAST[10:])
        assert statuses(rest_of(client)) == [200, 200]


def test_limits_are_those_of_each_request(patient: Served) -> None:
    with patient.connect() as client:
        for _ in range(4):
            client.sendall(request(b"GET / HTTP/1.1", b"X: " + b"y" * 60_000))
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_reads_in_the_end_is_kept() -> None:
    """Writing stops for a while, as the answer is larger than all buffers."""
    limits = ConnectionLimits(write_seconds=1)
    with serving(app, limits) as served, served.connect() as client:
        client.sendall(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.2)
        left = HUGE
        while left > 0:
            left -= len(client.recv(1_000_000))
        time.sleep(1.2)
        client.sendall(LAST)
        assert rest_of(client).endswith(b'["host", "connection"]]')


@pytest.mark.parametrize("headers", [b"", CLOSE])
def test_a_client_that_does_not_read_is_given_up(hasty: Served, headers: bytes) -> None:
    with hasty.connect() as client:
        client.sendall(b"GET /huge HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
        wait_for(lambda: hasty.connections == 1)
        wait_for(lambda: hasty.connections == 0)
        assert len(rest_of(client)) < HUGE


@pytest.mark.parametrize(("headers", "more"), [(b"", b""), (CLOSE, b""), (b"", b"\0")])
def test_the_end_of_an_answer_that_nobody_reads_is_dropped(headers: bytes, more: bytes) -> None:
    """It is less than what stops the writing, and so the answer is complete."""

    async def filling(scope: Any, receive: Any, send: Any) -> None:
        await fill(served, send)

    limits = ConnectionLimits(write_seconds=SOON)
    with serving(filling, limits, timeout_keep_alive=SOON) as served, served.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
        wait_for(lambda: served.server.server_state.total_requests == 1)
        client.sendall(more)
        wait_for(lambda: served.connections == 0)


def test_no_answer_follows_a_refusal() -> None:
    """Though the client reads neither at once, and the application answers before it is told."""

    async def hurried(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            await asyncio.sleep(2 * SOON)
            await app({**scope, "path": "/"}, never_more, send)
        else:
            await fill(served, send)

    with serving(hurried) as served, served.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: served.server.server_state.total_requests == 1)
        client.sendall(chunked(b"3\r\n"))
        wait_for(lambda: served.requests == 1)
        client.sendall(b"abcd")
        wait_for(lambda: served.requests == 0)
        assert statuses(rest_of(client)) == [200, 400]
