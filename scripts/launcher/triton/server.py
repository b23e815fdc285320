"""A Triton server process: started, waited for, watched and stopped.

with TritonServer({"LORA_ADAPTERS": "sql=/adapters/sql"}) as server:
    server.wait_ready()
    urlopen(server.http_url + "/v2/models/multilora/generate", data)
"""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.process import LaunchError, Startable
from launcher.repository import REPOSITORY
from launcher.triton import log, stubs
from launcher.triton.end import wait_for_end
from launcher.triton.install import CACHE, find_install

_TAIL_LINES = 2000
_STOP_SECONDS = 40.0  # the server itself gives its models 30
_BROKEN_STOP_SECONDS = 3.0  # the server waits in vain for a model whose process has died
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy to ourselves


class SettingsRefused(LaunchError):
    """A Triton model refused its settings; the message says all that there is to know."""


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


class TritonServer(Startable):
    """`environment` holds settings by name (MODEL_ID, …) for the Triton models, beside ours.

    `hostname` is the address to listen on. `on_line` is called, on another thread, with every line
    of the log.
    """

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        *,
        ports: Ports | None = None,
        hostname: str = "127.0.0.1",
        model_repository: Path = REPOSITORY / "model_repository",
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self.ports = ports or Ports()
        self.hostname = hostname
        self.stage = "starting"
        self._environment = dict(environment or {})
        self._model_repository = model_repository.resolve()
        self.on_line = on_line
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._stubs: dict[int, str] = {}  # once ready: process id → Triton model

    @property
    def _host(self) -> str:
        """Where clients on this machine find the server."""
        return "localhost" if self.hostname in ("127.0.0.1", "0.0.0.0") else self.hostname

    @property
    def http_url(self) -> str:
        return f"http://{self._host}:{self.ports.http}"

    @property
    def grpc_address(self) -> str:
        """host:port, as tritonclient.grpc takes it."""
        return f"{self._host}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._host}:{self.ports.metrics}/metrics"

    def start(self) -> None:
        """Start the process; raises LaunchError when it cannot be started."""
        install = find_install()
        if not self._model_repository.is_dir():
            raise LaunchError(f"the model repository {self._model_repository} does not exist")
        self.ports = self.ports.resolve()
        folder = CACHE / "run"  # the working directory is importable in the models: keep it empty
        folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [
                str(install.binary),
                f"--model-repository={self._model_repository}",
                f"--backend-directory={install.backends}",
                f"--http-port={self.ports.http}",
                f"--grpc-port={self.ports.grpc}",
                f"--metrics-port={self.ports.metrics}",
                f"--http-address={self.hostname}",
                f"--grpc-address={self.hostname}",
                f"--metrics-address={self.hostname}",
            ],
            cwd=folder,
            env={**os.environ, **install.environment, **self._environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop the server in order
        )
        self._reader = threading.Thread(target=self._read_log, name="triton-log", daemon=True)
        self._reader.start()

    def wait_ready(
        self, timeout: float = 1800.0, progress: Callable[[float, str], None] | None = None
    ) -> None:
        """Return once every model is loaded; raises LaunchError when the server dies or hangs.

        `progress` is called several times a second with the seconds so far and the stage.
        """
        start = time.monotonic()
        while not self.is_ready():
            elapsed = time.monotonic() - start
            if (code := self.poll()) is not None:
                self._join_reader()
                failure = log.failure(self._tail)
                if failure and failure.told:
                    raise SettingsRefused(failure.reason)
                raise LaunchError(
                    failure.reason if failure else f"the Triton server ended with exit code {code}"
                )
            if elapsed > timeout:
                raise LaunchError(f"the Triton server is not ready after {timeout:.0f} s")
            if progress:
                progress(elapsed, self.stage)
            time.sleep(0.2)
        assert self._process is not None
        self._stubs = stubs.stubs(self._process.pid)

    def check(self) -> None:
        """Raises LaunchError when the server, or the process of one of its models, has died."""
        if (code := self.poll()) is not None:
            raise LaunchError(f"the Triton server died with exit code {code}")
        if dead := self._dead_models():
            raise LaunchError(f"the process of the Triton model {dead[0]} died; see the log above")

    def is_ready(self) -> bool:
        try:
            with _DIRECT.open(f"{self.http_url}/v2/health/ready", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def poll(self) -> int | None:
        """The exit code once the process has ended."""
        return self._process.poll() if self._process else None

    def stop(self) -> None:
        """End the process: in order, and after a while by force. Safe to call twice."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            seconds = _BROKEN_STOP_SECONDS if self._dead_models() else _STOP_SECONDS
            try:
                wait_for_end(self._process, seconds, self._last_line, self.metrics_url)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # models outlive a server that crashed
            os.killpg(self._process.pid, signal.SIGKILL)
        self._join_reader()

    def log_tail(self, lines: int = 40) -> list[str]:
        """The last lines of the log."""
        return list(self._tail)[-lines:]

    def _last_line(self) -> str:
        return self._tail[-1] if self._tail else ""

    def _dead_models(self) -> list[str]:
        return [model for pid, model in self._stubs.items() if not stubs.model_of(pid)]

    def _read_log(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            line = line.rstrip("\n")
            self._tail.append(line)
            self.stage = log.stage(line) or self.stage
            if self.on_line:
                self.on_line(line)

    def _join_reader(self) -> None:
        """A stub that outlives the server keeps the pipe open, so the wait is short."""
        if self._reader:
            self._reader.join(timeout=5)


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
