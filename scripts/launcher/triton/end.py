"""The end of a Triton server's process: what it still waits for, and when that is in vain.

The server's HTTP service waits 30 seconds for clients to close their connections. A client that
keeps an idle connection for its next request never does; after that time the server leaves without
unloading anything.
"""

import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterable

_LOOK_SECONDS = 0.5
_VAIN_SECONDS = 3.0  # without a running request; a client may still read a last answer
_CONNECTIONS = re.compile(r'"Timeout \d+: Found (\d+) HTTP service connections"')
_MODELS = re.compile(r'"Timeout \d+: Found \d+ live models')
_REQUESTS = re.compile(r"^multilora_(?:running|waiting)_requests(?:\{.*\})? (\S+)$", re.MULTILINE)
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy to ourselves


def waits_for(log: Iterable[str]) -> str:
    """What the server waits for, by the last words of its log."""
    for line in reversed(list(log)):
        if match := _CONNECTIONS.search(line):
            return f"clients to close their connections to Triton's HTTP port ({match[1]})"
        if _MODELS.search(line):
            return "models to be unloaded"
    return "running requests to end"


def wait_for_end(
    process: "subprocess.Popen[str]", seconds: float, last_line: Callable[[], str], metrics_url: str
) -> None:
    """Returns once the process has ended.

    Raises TimeoutExpired after `seconds`, or as soon as only idle connections hold the process up.
    """
    deadline = time.monotonic() + seconds
    held_since = None
    while True:
        try:
            process.wait(_LOOK_SECONDS)
            return
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if not _CONNECTIONS.search(last_line()) or not is_idle(_metrics(metrics_url)):
                held_since = None
            elif held_since is None:
                held_since = now
            if now > deadline or (held_since is not None and now - held_since > _VAIN_SECONDS):
                raise


def is_idle(metrics: str) -> bool:
    """Whether the figures say that no request runs or waits; False when they say nothing."""
    found = _REQUESTS.findall(metrics)
    return bool(found) and not any(map(float, found))


def _metrics(url: str) -> str:
    try:
        with _DIRECT.open(url, timeout=_LOOK_SECONDS) as answer:
            return answer.read().decode()
    except OSError:
        return ""
