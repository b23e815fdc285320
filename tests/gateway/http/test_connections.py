"""How many connections are served, in all and to one client."""

import json
import time
from typing import Any

import pytest

from multilora_gateway.http import protocol
from multilora_gateway.http.connections import ConnectionLimits, Connections
from support.gateway.serving import GET, Served, rest_of, serving, statuses, wait_for

OTHER = "127.0.0.2"


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def is_served(served: Served, source: str) -> bool:
    """Also says whether a refusal has its form."""
    before = served.connections
    with served.connect(source) as client:
        wait_for(lambda: served.connections > before)
        time.sleep(0.05)  # A refusal comes unasked; what is sent now would reset the connection.
        client.setblocking(False)
        try:
            answer = client.recv(65536)
        except BlockingIOError:
            answer = b""
    wait_for(lambda: served.connections == before)
    if not answer:
        return True
    head, _, body = answer.partition(b"\r\n\r\n")
    assert statuses(head) == [503] and b"\r\nretry-after: " in head
    assert b"\r\nconnection: close" in head
    assert "(--max-connections" in json.loads(body)["error"]
    return False


@pytest.mark.parametrize(
    ("limits", "other_is_served"),
    [(ConnectionLimits(in_all=3, per_client=0), False), (ConnectionLimits(0, per_client=3), True)],
)
def test_too_many(limits: ConnectionLimits, other_is_served: bool) -> None:
    with serving(app, limits) as served:
        clients = [served.connect() for _ in range(3)]
        wait_for(lambda: served.connections == 3)
        assert not is_served(served, "127.0.0.1")
        assert is_served(served, OTHER) == other_is_served
        for client in clients:
            client.sendall(GET)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        for client in clients:
            client.close()
        wait_for(lambda: not served.connections)
        assert is_served(served, "127.0.0.1") and is_served(served, OTHER)


def test_no_limit() -> None:
    with serving(app, ConnectionLimits(in_all=0, per_client=0)) as served:
        clients = [served.connect() for _ in range(50)]
        for client in clients:
            client.sendall(GET)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
            client.close()


def test_clients_that_were_refused_do_not_count() -> None:
    with serving(app, ConnectionLimits(per_client=2)) as served:
        for _ in range(3):
            clients = [served.connect() for _ in range(2)]
            wait_for(lambda: served.connections == 2)
            refused = [served.connect() for _ in range(5)]
            assert all(statuses(rest_of(client)) == [503] for client in refused)
            for client in (*clients, *refused):
                client.close()
            wait_for(lambda: not served.connections)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%lo", "fe80::2", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
    ],
)
def test_who_is_one_client(first: str, second: str, same: bool) -> None:
    connections = Connections(ConnectionLimits(per_client=1), refused=lambda reason: None)
    assert connections.open(first) is None
    assert (connections.open(second) is not None) == same
    connections.close(second)
    connections.close(first)
    assert connections.open(second) is None


@pytest.mark.parametrize(("sent", "status"), [(GET, 503), (b"hello\r\n\r\n", 400)])
def test_a_client_that_is_refused_while_it_sends_can_read_why(sent: bytes, status: int) -> None:
    """A reset of the connection, which unread bytes cause, would lose the answer."""
    most = 1 if status == 503 else 2
    with serving(app, ConnectionLimits(in_all=most, per_client=0)) as served:
        first = served.connect()
        wait_for(lambda: served.connections == 1)
        for _ in range(10):
            with served.connect() as client:
                for _ in range(3):
                    client.sendall(sent)
                    time.sleep(0.02)
                assert statuses(rest_of(client)) == [status]
            wait_for(lambda: served.connections == 1)
        first.close()


@pytest.mark.parametrize(("most", "seconds"), [(0, 60), (1, 0.1)])
def test_a_refused_client_that_stays_is_closed(
    monkeypatch: pytest.MonkeyPatch, most: int, seconds: float
) -> None:
    """At once where many linger, else after some time."""
    monkeypatch.setattr(protocol, "MOST_LINGERING", most)
    monkeypatch.setattr(protocol, "_LINGER_SECONDS", seconds)
    with serving(app, ConnectionLimits(in_all=1, per_client=0, head_seconds=60)) as served:
        first = served.connect()
        wait_for(lambda: served.connections == 1)
        with served.connect() as client:
            assert statuses(rest_of(client)) == [503]
            wait_for(lambda: served.connections == 1)
        first.close()
