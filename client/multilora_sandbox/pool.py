"""ProcessPool: processes that answer lines of JSON, kept for those who ask.

A process ends with the process that started it, because its input ends then; it hears no Ctrl-C,
and knows none of its parent's environment that might be secret.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

from multilora_sandbox.worker import MEMORY_STATUS

_START_SECONDS = 120.0
_PART_BYTES = 1 << 16
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TZ", "LANG", "LC_ALL", "PYTHONHOME")


class Ending(Enum):
    """Why a process has not answered."""

    TIME = "time"
    MEMORY = "memory"
    CRASH = "crash"
    OUTSIDE = "outside"  # somebody else ended it


class Broken(Exception):
    """A question ended its process."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.value)
        self.ending = ending


class PoolClosed(Exception):
    """Nothing is answered any more."""


class ProcessPool:
    """Any thread. `program` is a module that calls worker.serve, `setup` gives the first line for
    each of its processes."""

    def __init__(self, program: str, setup: Callable[[], Any] = lambda: None) -> None:
        self._program = program
        self._setup = setup
        self._lock = threading.Lock()  # guards what follows
        self._idle: list[LineProcess] = []
        self._all: set[LineProcess] = set()
        self._closed = False

    def ask(self, question: bytes, seconds: float) -> Any:
        """The answer to a line of JSON. A process that somebody else ends is replaced once.

        Raises Broken, for example after `seconds`; PoolClosed; OSError when no process starts.
        """
        process = self._take()
        if (answer := process.ask(question, seconds)) is None:
            if (ending := self._drop(process)) is not Ending.OUTSIDE:
                raise Broken(ending)
            process = self._start()
            if (answer := process.ask(question, seconds)) is None:
                raise Broken(self._drop(process))
        with self._lock:
            self._idle.append(process)
        return json.loads(answer)

    def prepare(self) -> None:
        """Have a process ready for the next question. Raises like `ask`."""
        with self._lock:
            if self._idle:
                return
        process = self._start()
        with self._lock:
            self._idle.append(process)

    def close(self) -> None:
        """Kill the processes, whatever they are doing."""
        with self._lock:
            self._closed = True
            processes = list(self._all)
            self._idle.clear()
        for process in processes:
            process.end()

    def _take(self) -> "LineProcess":
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._start()

    def _start(self) -> "LineProcess":
        with self._lock:
            if self._closed:
                raise PoolClosed
            process = LineProcess(self._program)
            self._all.add(process)
        if process.ask(json.dumps(self._setup()).encode(), _START_SECONDS) is None:
            self._drop(process)
            raise OSError(f"{self._program} does not start")
        return process

    def _drop(self, process: "LineProcess") -> Ending:
        """Why it has ended; PoolClosed when that is because nothing is answered any more."""
        ending = process.end()
        with self._lock:
            self._all.discard(process)
            if self._closed:
                raise PoolClosed
        return ending


class LineProcess:
    """Answers each line with a line. One thread at a time may ask; any thread may call `end`."""

    def __init__(self, program: str) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._socket, theirs = socket.socketpair()
        self._lock = threading.Lock()  # held while the socket is used
        self._late = False
        try:
            self._process = subprocess.Popen(
                # Without site, which takes time, and without the working directory on the path.
                [sys.executable or "python3", "-SP", "-m", program],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env={**kept, "PYTHONPATH": path},
                start_new_session=True,  # so that a Ctrl-C reaches the server alone
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()

    def ask(self, question: bytes, seconds: float) -> bytes | None:
        """The answer to a line; None: the process has died, or took longer than `seconds`."""
        with self._lock:
            end = time.monotonic() + seconds
            parts: list[bytes] = []
            try:
                self._socket.settimeout(seconds)
                self._socket.sendall(question + b"\n", socket.MSG_NOSIGNAL)
                while not parts or not parts[-1].endswith(b"\n"):
                    self._socket.settimeout(max(end - time.monotonic(), 0.001))
                    parts.append(self._socket.recv(_PART_BYTES))
                    if not parts[-1]:
                        return None
            except TimeoutError:
                self._late = True
                return None
            except OSError:
                return None
            return b"".join(parts)

    def end(self) -> Ending:
        """Kill the process unless it has ended; why it has."""
        self._process.kill()
        status = self._process.wait()
        with self._lock:
            self._socket.close()
        if self._late or status == -signal.SIGPROF:
            return Ending.TIME
        if status == MEMORY_STATUS:
            return Ending.MEMORY
        if status in (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
            return Ending.OUTSIDE
        return Ending.CRASH
