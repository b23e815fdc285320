"""The socket that the gateway listens on."""

import errno
import socket

_BACKLOG = 1024


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
