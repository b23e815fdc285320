"""A Triton server process: started, waited for, watched and stopped.

with TritonServer({"LORA_ADAPTERS": "sql=/adapters/sql"}) as server:
    server.wait_ready()
    urlopen(server.http_url + "/v2/models/multilora/generate", data)
"""

import contextlib
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from launcher.process import LaunchError, Startable, end_child, start_child
from launcher.repository import REPOSITORY
from launcher.triton import log, shared_memory, stubs
from launcher.triton.end import wait_for_end
from launcher.triton.install import CACHE, find_install, written_to
from launcher.triton.ports import Ports, restrictions

_TAIL_LINES = 2000
_STOP_SECONDS = 40.0  # the server itself gives its models 30
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy to ourselves


class SettingsRefused(LaunchError):
    """A Triton model refused its settings; the message says all that there is to know."""


class TritonServer(Startable):
    """`environment` holds settings by name (MODEL_ID, …) for the Triton models, beside ours.

    `hostname` is the address to listen on. `open_apis` are those of ports.CLOSED that clients may
    use. `on_line` is called, on another thread, with every line of the log.
    """

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        *,
        ports: Ports | None = None,
        hostname: str = "127.0.0.1",
        open_apis: Collection[str] = (),
        model_repository: Path = REPOSITORY / "model_repository",
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self.ports = ports or Ports()
        self.hostname = hostname
        self.stage = "starting"
        self._open_apis = open_apis
        self._environment = dict(environment or {})
        self._model_repository = model_repository.resolve()
        self.on_line = on_line
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._serving = False
        self._stubs: dict[int, str] = {}  # once ready: process id → Triton model
        self._shm_prefix = shared_memory.new_prefix()
        self._lost_lock = False  # the server had to be started twice

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
    def stubs(self) -> dict[int, str]:
        """Once ready: process id → its Triton model."""
        return dict(self._stubs)

    @property
    def metrics_url(self) -> str:
        return f"http://{self._host}:{self.ports.metrics}/metrics"

    def start(self) -> None:
        """Start the process; raises LaunchError when it cannot be started.

        Started again, the server listens on the same ports.
        """
        install = find_install()
        if not self._model_repository.is_dir():
            raise LaunchError(f"the model repository {self._model_repository} does not exist")
        self.ports = self.ports.resolve()
        folder = CACHE / "run"  # the working directory is importable in the models: keep it empty
        with written_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
        shared_memory.remove_leftovers()
        self._serving, self._stubs, self.stage = False, {}, "starting"
        self._tail.clear()
        self._process = start_child(
            [
                str(install.binary),
                f"--model-repository={self._model_repository}",
                f"--backend-directory={install.backends}",
                f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
                f"--http-port={self.ports.http}",
                f"--grpc-port={self.ports.grpc}",
                f"--metrics-port={self.ports.metrics}",
                f"--http-address={self.hostname}",
                f"--grpc-address={self.hostname}",
                f"--metrics-address={self.hostname}",
                *restrictions(self._open_apis),
            ],
            {**install.environment, **self._environment},
            cwd=folder,
            stderr=subprocess.STDOUT,
        )
        self._reader = threading.Thread(
            target=self._read_log, args=(self._process,), name="triton-log", daemon=True
        )
        self._reader.start()

    def wait_ready(
        self, timeout: float = 1800.0, progress: Callable[[float, str], None] | None = None
    ) -> None:
        """Return once every model is loaded; raises LaunchError when the server dies or hangs.

        `progress` is called several times a second with the seconds so far and the stage.
        """
        start = time.monotonic()
        while not self.serves():
            elapsed = time.monotonic() - start
            if elapsed > timeout:
                raise LaunchError(f"the Triton server is not ready after {timeout:.0f} s")
            if progress:
                progress(elapsed, self.stage)
            time.sleep(0.2)

    def serves(self) -> bool:
        """Whether every model is loaded; raises LaunchError when the server, or the process of one
        of its models, has died."""
        if self._serving:
            self.check()
            return True
        if (code := self.poll()) is not None:
            return self._failed_start(code)
        assert self._process is not None, "the server has not been started"
        self._serving = self.is_ready()
        shared_memory.make_private(self._shm_prefix)
        if self._serving:
            self._stubs = stubs.stubs(self._process.pid)
        return self._serving

    def check(self) -> None:
        """Raises LaunchError when the server, or the process of one of its models, has died."""
        if (code := self.poll()) is not None:
            raise LaunchError(f"the Triton server died with exit code {code}")
        if dead := self._dead_models():
            raise LaunchError(f"the process of the Triton model {dead[0]} died; see the log above")

    def is_broken(self) -> bool:
        """Whether `check` would raise an error."""
        return self.poll() is not None or bool(self._dead_models())

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
        """End the process: in order, and after a while by force. Safe to call twice.

        A server that has lost the process of a model waits for it in vain, and is killed at once.
        """
        if self._process is None:
            return
        if not self.is_broken():
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                wait_for_end(self._process, _STOP_SECONDS, self._last_line, self.metrics_url)
        end_child(self._process)  # models outlive a server that crashed
        shared_memory.remove(self._shm_prefix)
        self._join_reader()

    def log_tail(self, lines: int = 40) -> list[str]:
        """The last lines of the log."""
        return list(self._tail)[-lines:]

    def _last_line(self) -> str:
        return self._tail[-1] if self._tail else ""

    def _dead_models(self) -> list[str]:
        return [model for pid, model in self._stubs.items() if not stubs.model_of(pid)]

    def _failed_start(self, code: int) -> bool:
        """Raises LaunchError with the reason, unless another start may go well: then False."""
        self._join_reader()
        if log.lost_lock(self._tail) and not self._lost_lock:
            self._lost_lock = True
            self.stop()
            self.start()
            return False
        failure = log.failure(self._tail)
        if failure and failure.told:
            raise SettingsRefused(failure.reason)
        raise LaunchError(
            failure.reason if failure else f"the Triton server ended with exit code {code}"
        )

    def _read_log(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            line = line.rstrip("\n")
            self._tail.append(line)
            self.stage = log.stage(line) or self.stage
            if self.on_line:
                self.on_line(line)

    def _join_reader(self) -> None:
        """A stub that outlives the server keeps the pipe open, so the wait is short."""
        if self._reader:
            self._reader.join(timeout=5)
