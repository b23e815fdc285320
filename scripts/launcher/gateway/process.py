"""The gateway as a process beside a Triton server: started, watched and stopped."""

import contextlib
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from launcher.process import LaunchError, Startable, end_child, start_child
from launcher.triton.ports import Ports
from launcher.triton.server import TritonServer
from multilora_gateway.http.listener import ListenError, listen
from multilora_gateway.settings import Settings

_READY = "ready: "
_START_SECONDS = 30.0
_STOP_SECONDS = 15.0  # running streams may end; the engine hears of those that do not


class GatewayFailure(LaunchError):
    """A failure of the gateway: the log of the Triton server says nothing about it."""


def check_address(settings: Settings, ports: Ports) -> None:
    """Raises GatewayFailure for an address that the gateway cannot listen on.

    To be called before the Triton server starts, so that no model is loaded for nothing.
    """
    if settings.port and settings.port in (ports.http, ports.grpc, ports.metrics):
        raise GatewayFailure(f"port {settings.port} (--port) is given twice; choose another")
    try:
        listen(settings.hostname, settings.port).close()
    except ListenError as error:
        raise GatewayFailure(str(error)) from None


class GatewayProcess(Startable):
    """The gateway in front of `server`; `url` is known once the gateway is started.

    `flags` are the gateway's own; `environment` holds its keys, which a command line would show to
    everybody on the machine.
    """

    def __init__(
        self, server: TritonServer, flags: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.url = ""
        self.needs_key = bool(environment.get("API_KEY"))
        self._server = server
        self._flags = list(flags)
        self._environment = dict(environment)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns once the gateway listens; raises GatewayFailure when it does not.

        Started again, the gateway listens on the same port.
        """
        server = self._server
        same = [f"--port={self.url.rpartition(':')[2]}"] if self.url else []
        self._process = start_child(
            [
                *(sys.executable, "-m", "multilora_gateway"),
                *("--triton-url", server.grpc_address),
                *("--triton-metrics-url", server.metrics_url),
                *self._flags,
                *same,
            ],
            self._environment,
        )
        line = self._first_line()
        if not line.startswith(_READY):
            self.stop()
            raise GatewayFailure("the gateway did not start; see its message above")
        self.url = line.removeprefix(_READY).strip()

    def serves(self) -> bool:
        """True; raises GatewayFailure when the gateway has died."""
        code = self._process.poll() if self._process else None
        if code is not None:
            raise GatewayFailure(f"the gateway died with exit code {code}; see the log above")
        return True

    def stop(self) -> None:
        """End the gateway: in order, and after a while by force. Safe to call twice."""
        if self._process is None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        end_child(self._process)

    def _first_line(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        deadline = time.monotonic() + _START_SECONDS
        readable, _, _ = select.select(
            [self._process.stdout], [], [], max(0.0, deadline - time.monotonic())
        )
        return self._process.stdout.readline() if readable else ""
