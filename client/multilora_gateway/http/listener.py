"""The socket that the gateway listens on, and how many connections it may take."""

import errno
import logging
import resource
import socket

from multilora_gateway.http.connections import MOST_LINGERING

_BACKLOG = 1024
_OTHER_FILES = 256 + MOST_LINGERING
_LOG = logging.getLogger("multilora.gateway")


class ListenError(Exception):
    """The address cannot be used; the message says what to do."""


def listen(hostname: str, port: int) -> socket.socket:
    """Listens by IPv4 when the name has such an address, else by IPv6; `::` means both. Port 0 is
    any free port. Raises ListenError."""
    host = hostname.strip("[]")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        if any(family == socket.AF_INET for family, *_ in found):
            return socket.create_server((host, port), backlog=_BACKLOG)
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6,
            backlog=_BACKLOG,
            dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
        )
    except (OSError, UnicodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise ListenError(
            f"{hostname}:{port} (--hostname, --port) cannot be used: {reason.partition(' (')[0]}; "
            f"{_remedy(error)}"
        ) from None


def raise_file_limit(connections: int) -> int:
    """Let this process open as many files as `connections` need, 0 as many as it may. Returns for
    how many connections that is enough: where it is fewer, accepting one more would fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard):
        return connections
    needed = connections + _OTHER_FILES if connections else hard
    if needed > soft:
        soft = min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = max(1, soft - _OTHER_FILES)
    if connections > most:
        _LOG.warning("%d connections at most: raise the limit of open files (ulimit -n)", most)
    return min(connections or most, most)


def _remedy(error: OSError | UnicodeError) -> str:
    if isinstance(error, PermissionError):
        return "choose a port from 1024 on"
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return "stop what listens there or choose another port"
    return "let --hostname be a name or an address of this machine, 0.0.0.0 for all of them"


def url_of(hostname: str, port: int) -> str:
    """The URL of an address, with brackets around IPv6."""
    host = hostname.strip("[]")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
