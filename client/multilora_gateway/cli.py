"""The gateway as a program: it reads its command line, listens and serves."""

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence

import uvicorn

from multilora_gateway.app import create_app
from multilora_gateway.http.connections import ConnectionLimits
from multilora_gateway.http.host_check import allowed_hosts
from multilora_gateway.http.listener import ListenError, listen, raise_file_limit, url_of
from multilora_gateway.http.metrics import GatewayMetrics
from multilora_gateway.http.protocol import HttpConfig
from multilora_gateway.json_lines import JsonLines
from multilora_gateway.settings import parse_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM. The exit code is 1 when the address cannot be used."""
    settings = parse_settings(arguments, os.environ)
    logging.basicConfig(format="%(levelname).1s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # a warning tells of a client's mistake
    if settings.json_output:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
    try:
        listener = listen(settings.hostname, settings.port)
    except ListenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    address, port = listener.getsockname()[:2]
    limits = ConnectionLimits(
        raise_file_limit(settings.max_connections), settings.max_connections_per_client
    )
    metrics = GatewayMetrics(settings.triton_metrics_url)
    app = create_app(settings, allowed_hosts(settings, address), metrics)
    config = HttpConfig(
        app, limits, metrics.refuse, timeout_keep_alive=75, timeout_graceful_shutdown=5
    )
    server = _Server(config, f"ready: {url_of(settings.hostname, port)}")
    server.run(sockets=[listener])
    return 0


class _Server(uvicorn.Server):
    """Prints a line when it listens, which the launcher waits for, and exits with code 0 after a
    signal."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what stands now stays: a look over all of it would hold up every stream
        if self.started:
            print(self._ready, flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Replaces uvicorn's method, which raises the signal again at the end."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield
