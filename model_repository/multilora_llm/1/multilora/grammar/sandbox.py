"""GrammarSandbox: compiles a grammar in a process of its own first, to see whether it is harmless.

llguidance can neither be stopped nor limited while it compiles: a schema of 1 kB may take hours and
all memory, or crash the process. A grammar that passes here takes as much time and memory once
more in the server's own process, and does no other harm.
"""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable

from multilora.errors import internal, invalid, shutting_down
from multilora_api.sampling import Grammar

_LOG = logging.getLogger(__name__)
_PROGRAM = "multilora.grammar.sandbox_process"
_WALL_SECONDS = 60.0  # enough on a busy machine for the processor time that the process allows
_START_SECONDS = 120.0


class GrammarSandbox:
    """Any thread. `setup` gives the first line for each process; see sandbox_process."""

    def __init__(self, setup: Callable[[], str]) -> None:
        self._setup = setup
        self._lock = threading.Lock()  # guards what follows
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._closed = False

    def check(self, grammar: Grammar) -> None:
        """RequestError (INVALID_ARG) when the grammar cannot be compiled within the limits of the
        process, or not at all."""
        process = self._take()
        answer = process.ask(json.dumps([grammar.kind, grammar.text]), _WALL_SECONDS)
        if answer is None:
            self._drop(process)
            if self._closed:
                raise shutting_down()
            raise invalid(
                "grammar: it takes more time or memory to compile than the server allows; "
                "simplify it"
            )
        with self._lock:
            self._idle.append(process)
        if answer:
            raise invalid(answer)

    def close(self) -> None:
        """Kill the processes, whatever they are doing."""
        with self._lock:
            self._closed = True
            processes = list(self._all)
        for process in processes:
            process.end()

    def _take(self) -> "_Process":
        with self._lock:
            if self._closed:
                raise shutting_down()
            while self._idle:
                if (process := self._idle.pop()).is_running:
                    return process
                self._all.discard(process)  # it has died, or was killed from outside
        try:
            process = _Process()
        except OSError as error:
            _LOG.exception("%s does not start", _PROGRAM)
            raise internal(f"grammar: it cannot be compiled here ({error})") from None
        with self._lock:
            self._all.add(process)
        if process.ask(self._setup(), _START_SECONDS) is None or self._closed:
            self._drop(process)
            raise shutting_down() if self._closed else internal(f"grammar: no {_PROGRAM} runs")
        return process

    def _drop(self, process: "_Process") -> None:
        with self._lock:
            self._all.discard(process)
        process.end()


class _Process:
    """Answers each line with a line. One thread at a time may ask; any thread may call `end`."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable or "python3", "-m", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # so that a Ctrl-C reaches the server alone
        )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: str, seconds: float) -> str | None:
        """The answer to a line of JSON; None: the process has died, or took too long."""
        assert self._process.stdin and self._process.stdout
        timer = threading.Timer(seconds, self.end)
        timer.start()
        try:
            self._process.stdin.write(question.encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            return json.loads(line) if line else None
        except (OSError, ValueError):
            return None
        finally:
            timer.cancel()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
