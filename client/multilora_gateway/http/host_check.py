"""The names by which requests may call this server.

A web page whose name is made to resolve to 127.0.0.1 (DNS rebinding) is of the same origin as a
server there, so its browser would let it read answers; its requests still hold the page's name.
"""

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from multilora_gateway.errors import GatewayError
from multilora_gateway.http.error_answers import error_answer
from multilora_gateway.settings import Settings

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:/@\[\]]+))(?::\d*)?")
_LIFE = ("/health", "/ping")  # Probes call a machine by its address.


def allowed_hosts(settings: Settings, address: str) -> tuple[str, ...]:
    """Patterns of names, without the brackets of IPv6; ("*",) is any. `address` is what the gateway
    listens on."""
    if not settings.allowed_hosts and (settings.api_keys or not ip_address(address).is_loopback):
        return ("*",)
    own = ("localhost", "127.0.0.1", "::1", settings.hostname.lower())
    return tuple(name.strip("[]") for name in (*settings.allowed_hosts, *own))


class HostCheck:
    """ASGI middleware: 403 for a Host header that no pattern of `allowed` covers, whatever its
    port; 400 where there is not exactly one such header. `refused` is told of each."""

    def __init__(
        self, app: ASGIApp, allowed: Sequence[str], refused: Callable[[str], None]
    ) -> None:
        self._app = app
        self._refused = refused
        self._allowed = tuple(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._refusal(scope)):
            self._refused("host")
            return await error_answer(scope["path"], error)(scope, receive, send)
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> GatewayError | None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if not hosts and scope["http_version"] == "1.0":  # No browser is that old.
            return None
        if len(hosts) != 1:
            return GatewayError(400, "validation", "send exactly one Host header")
        if "*" in self._allowed or scope["path"] in _LIFE:
            return None
        host = _HOST.fullmatch(hosts[0].lower())
        if host is None:
            return GatewayError(400, "validation", "the Host header is not NAME or NAME:PORT")
        name = host[1] or host[2]
        if any(fnmatchcase(name, pattern) for pattern in self._allowed):
            return None
        return GatewayError(
            403, "forbidden",
            f"this server is not called {name!r}; call it localhost, or start it with "
            f"--allowed-hosts {name} (* allows any name), for instance behind a proxy",
        )  # fmt: skip
