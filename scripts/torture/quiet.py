"""The quiet state: what a server holds when nobody asks anything of it.

Laws: nothing runs, waits or loads, no block and no reference is held, no request is open; every
process has about as many descriptors and threads as at first, and no file of a dead process is left
in /dev/shm.
"""

import re
import time
from collections.abc import Callable

from torture.processes import HELPER, ProcessFigures, existing, figures, shared_files
from torture.server import ServerUnderTest
from torture.speak import call

_HELD = {  # and how much of it there is at most
    "running_requests": 0, "waiting_requests": 0, "kv_blocks_used": 0, "adapter_references": 0,
    "adapters_loading": 0, "gateway_open_requests": 1,  # the request for /metrics itself
}  # fmt: skip
_SETTLES_SECONDS = 30.0
_MORE_FDS = 24  # than at first: connections to the Triton server, files that are read at times
_MORE_THREADS = 48  # pools grow up to their limits
_MORE_HELPERS = 8  # processes in which grammars and templates are tried


class QuietState:
    """Made when the server is up and has answered some requests; `leaks` compares with then."""

    def __init__(self, server: ServerUnderTest) -> None:
        self._server = server
        _settled(lambda: _held(server))
        self._first = _by_name(server)
        self._helpers = _helpers(server)

    def leaks(self) -> list[str]:
        """What is held although nothing should be, once the server had time to settle."""
        return _settled(self._found)

    def _found(self) -> list[str]:
        found = _held(self._server)
        for name, now in _by_name(self._server).items():
            first = self._first.get(name, now)
            if now.fds > first.fds + _MORE_FDS or now.threads > first.threads + _MORE_THREADS:
                found.append(f"{name} has {now}, at first {first}")
        if (helpers := _helpers(self._server)) > self._helpers + _MORE_HELPERS:
            found.append(f"{helpers} helper processes, at first {self._helpers}")
        orphans = self._server.shared - shared_files(self._server.processes())
        return found + [f"/dev/shm/{name} belongs to nobody" for name in existing(orphans)]


def _settled(look: Callable[[], list[str]]) -> list[str]:
    deadline = time.monotonic() + _SETTLES_SECONDS
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.3)
    return found


def _held(server: ServerUnderTest) -> list[str]:
    try:
        text = b"".join(
            call(address, "GET", "/metrics", seconds=10).body
            for address in (server.metrics, server.gateway)
        ).decode()
    except OSError as error:
        return [f"/metrics: {error}"]
    found = re.findall(r"^(?:multilora_)?(\w+)(?:\{model=\"\w+\"\})? (\S+)$", text, re.MULTILINE)
    now = {name: float(value) for name, value in found if name in _HELD}
    wrong = [name for name, most in _HELD.items() if not 0 <= now.get(name, -1) <= most]
    return [f"{name} is {now.get(name, 'unknown')}" for name in wrong]


def _by_name(server: ServerUnderTest) -> dict[str, ProcessFigures]:
    named = {name: figures(pid) for pid, name in server.processes().items() if name != HELPER}
    return {name: now for name, now in named.items() if now}


def _helpers(server: ServerUnderTest) -> int:
    return [*server.processes().values()].count(HELPER)
