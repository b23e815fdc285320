"""An application behind the gateway's own HTTP protocol, and raw connections to it."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from multilora_gateway.http.connections import ConnectionLimits
from multilora_gateway.http.protocol import HttpConfig

SECONDS = 20  # nothing may take longer
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@dataclass(frozen=True)
class Served:
    server: uvicorn.Server

    @property
    def port(self) -> int:
        return self.server.servers[0].sockets[0].getsockname()[1]

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    @property
    def requests(self) -> int:
        """Those that are being answered."""
        return len(self.server.server_state.tasks)

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), SECONDS, (source, 0))

    def answer(self, data: bytes) -> bytes:
        """All that comes back for `data` until the server closes the connection."""
        with self.connect() as client:
            client.sendall(data)
            return rest_of(client)


@contextlib.contextmanager
def serving(
    app: ASGIApp, limits: ConnectionLimits | None = None, **settings: Any
) -> Iterator[Served]:
    """A server in a thread. Fails when connections or requests are left at the end."""
    given = {"timeout_graceful_shutdown": 1, "lifespan": "off", **settings}
    config = HttpConfig(app, limits or ConnectionLimits(), port=0, log_level="critical", **given)
    served = Served(uvicorn.Server(config))
    thread = threading.Thread(target=served.server.run)
    thread.start()
    try:
        wait_for(lambda: served.server.started)
        yield served
        wait_for(lambda: not served.requests)
    finally:
        served.server.should_exit = True
        thread.join(SECONDS)
    assert not thread.is_alive() and not served.connections
    assert not config.open_connections.lingering


def rest_of(client: socket.socket) -> bytes:
    """What comes until the other side closes, or resets, the connection."""
    parts: list[bytes] = []
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
