"""The ports of a Triton server: their numbers, and what they offer to whom.

The server has no keys. What it offers besides requests, their models and their figures (shared
memory, log settings, traces, the repository of models) lets whoever reaches a port, a web page on
this machine too, write into the server's memory and files; so it is closed unless it is asked for.
"""

import errno
import ipaddress
import secrets
import socket
from collections.abc import Collection
from dataclasses import dataclass

from launcher.process import LaunchError

CLOSED = ("shared-memory", "logging", "trace", "model-repository")


@dataclass(frozen=True)
class Ports:
    """Where the server listens; 0 is any free port."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0

    def resolve(self) -> "Ports":
        """Numbers for the zeros; raises LaunchError for a port that is taken."""
        named = {"--http-port": self.http, "--grpc-port": self.grpc, "--metrics-port": self.metrics}
        sockets: list[socket.socket] = []
        numbers: list[int] = []
        try:
            for flag, port in named.items():
                if port in numbers:
                    raise LaunchError(f"port {port} ({flag}) is given twice; choose another")
                sockets.append(_listen(flag, port))
                numbers.append(sockets[-1].getsockname()[1])
        finally:
            for each in sockets:
                each.close()
        return Ports(*numbers)


def restrictions(open_apis: Collection[str]) -> list[str]:
    """The server's flags that close CLOSED but for `open_apis`.

    Triton closes an API to requests without a secret header. Everybody on this machine may read a
    command line, so the secret ends in a byte that no header can hold: nobody gets in.
    """
    closed = ",".join(name for name in CLOSED if name not in open_apis)
    secret = f"multilora-closed={secrets.token_hex(16)}\n"
    flags = ("--http-restricted-api", "--grpc-restricted-protocol")
    return [f"{flag}={closed}:{secret}" for flag in flags if closed]


def exposure(hostname: str, open_apis: Collection[str]) -> list[str]:
    """What to say when machines beside this one reach the ports on `hostname`."""
    if _is_local(hostname):
        return []
    besides = "".join(f", for {name}" for name in open_apis)
    return [
        f"Triton's ports are open to every machine that reaches {hostname} (--triton-hostname), "
        f"and know no API keys: not for generating, for metrics{besides}, nor, unless "
        "--adapter-admin=off or an admin key forbids it, for changing adapters"
    ]


def _is_local(hostname: str) -> bool:
    try:
        return ipaddress.ip_address(hostname.strip("[]")).is_loopback
    except ValueError:
        return hostname == "localhost"


def _listen(flag: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", port))
        listener.listen()
    except OSError as error:
        listener.close()
        stop = "stop what listens there or " if error.errno == errno.EADDRINUSE else ""
        raise LaunchError(
            f"port {port} ({flag}) cannot be used: {error.strerror}; {stop}choose another with "
            f"{flag}"
        ) from None
    return listener
