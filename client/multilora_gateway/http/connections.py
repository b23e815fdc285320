"""How many connections a server has, in all and by client."""

import logging
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from multilora_gateway.errors import GatewayError, unavailable

MOST_LINGERING = 512  # connections that were refused, beside those that are open
_TELL_SECONDS = 10.0  # between two lines of the log
_LOG = logging.getLogger("multilora.gateway")


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections may be open, 0 for any number, and for how many seconds the head of a
    request may arrive and a client may refuse to read."""

    in_all: int = 4096
    per_client: int = 1024
    head_seconds: float = 10.0
    write_seconds: float = 60.0


class Connections:
    """The open connections of a server, counted by their clients' addresses. `refused` is told of
    each that is not served, and why."""

    def __init__(self, limits: ConnectionLimits, refused: Callable[[str], None]) -> None:
        self._limits = limits
        self._refused = refused
        self._clients: Counter[str | bytes] = Counter()
        self._told = -_TELL_SECONDS
        self.lingering = 0  # refused and not closed yet, which do not count as open

    def open(self, address: str) -> GatewayError | None:
        """Count one more; returns why it is not served. `close` is due in any case."""
        client = _client(address)
        self._clients[client] += 1
        if 0 < self._limits.per_client < self._clients[client]:
            self._refused("connections_per_client")
            return self._refusal("from your address", "--max-connections-per-client")
        if 0 < self._limits.in_all < self._clients.total():
            self._refused("connections")
            return self._refusal("in all", "--max-connections")
        return None

    def close(self, address: str) -> None:
        client = _client(address)
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]

    def _refusal(self, which: str, flag: str) -> GatewayError:
        if time.monotonic() - self._told > _TELL_SECONDS:
            self._told = time.monotonic()
            _LOG.warning("connections are refused: too many %s (%s)", which, flag)
        return unavailable(f"too many connections {which} ({flag}); close some, or try again")


def _client(address: str) -> str | bytes:
    """Who counts as one client: an IPv4 address, or a network of 64 bits of IPv6."""
    if ":" not in address or address.startswith("::ffff:"):
        return address
    return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:8]
