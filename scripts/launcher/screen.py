"""What the user of the launcher sees: progress, the parts of the log that matter, how it ended.

As text, or with --json-output as one JSON object a line, of the shape that the gateway logs.
"""

import sys
import threading
from collections.abc import Sequence
from typing import TextIO

from launcher.triton.log import is_warning
from multilora_gateway.json_lines import json_line

_LAUNCHER, _SERVER = "multilora.launcher", "tritonserver"
_LEVELS = {"W": "WARNING", "E": "ERROR", "C": "ERROR"}  # by what lines of the log begin with


class Screen:
    """Prints for the user of the launcher. `verbose` shows the whole log of the server."""

    def __init__(self, verbose: bool, json: bool) -> None:
        self._verbose = verbose
        self._json = json
        self._in_place = sys.stdout.isatty() and not verbose and not json
        self._stage = ""
        self._lock = threading.Lock()  # the log arrives on another thread

    def progress(self, seconds: float, stage: str) -> None:
        """Show the stage: in place on a terminal, as a line when it changes elsewhere."""
        with self._lock:
            if self._in_place:
                print(f"\r\x1b[K{seconds:5.0f} s  {stage[:100]}", end="", flush=True)
            elif stage != self._stage:
                self._say("INFO", stage, f"{seconds:5.0f} s  {stage}")
            self._stage = stage

    def log(self, line: str) -> None:
        """Show a line of the server's log if it is wanted."""
        if self._verbose or is_warning(line):
            with self._lock:
                self._server(line, line)

    def warn(self, message: str) -> None:
        with self._lock:
            self._say("WARNING", message, f"warning: {message}", sys.stderr)

    def ready(self, seconds: float, report: Sequence[str], addresses: str, example: str) -> None:
        """Say what memory is used for, that requests are welcome, and how to send one."""
        with self._lock:
            if self._in_place:
                print("\r\x1b[K", end="")
            for line in [] if self._verbose else report:
                warning = line.startswith("warning: ")
                message = line.removeprefix("warning: ")
                self._say("WARNING" if warning else "INFO", message, f"{'':9}{line}")
            self._say("INFO", f"ready: {addresses}", f"{seconds:5.0f} s  ready: {addresses}")
            if not self._json:
                print(f"\n{example}\n", flush=True)

    def stopping(self) -> None:
        with self._lock:
            self._say("INFO", "stopping", "\nstopping")

    def say(self, message: str) -> None:
        with self._lock:
            self._say("INFO", message, message)

    def waiting(self, what: str) -> None:
        """Say why stopping takes so long."""
        self.say(f"waiting for {what}")

    def died(self, reason: str, tail: Sequence[str]) -> None:
        """Say which process is started again, below the end of the server's log."""
        with self._lock:
            self._tail(tail)
            self._say("WARNING", reason, f"warning: {reason}", sys.stderr)

    def failed(self, reason: str, tail: Sequence[str]) -> None:
        """Say why the launcher ends, below the end of the server's log."""
        with self._lock:
            if self._in_place:
                print()
            self._tail(tail)
            self._say("ERROR", reason, f"error: {reason}", sys.stderr)

    def _tail(self, lines: Sequence[str]) -> None:
        """Show the end of the server's log, unless it was shown already."""
        if lines and not self._verbose:
            if not self._json:
                print("last lines of the server log:", file=sys.stderr)
            for line in lines:
                self._server(line, f"  {line}")

    def _server(self, line: str, text: str) -> None:
        level = _LEVELS.get(line[:1], "INFO")
        self._say(level, line, text, sys.stderr, _SERVER)

    def _say(
        self, level: str, message: str, text: str, stream: TextIO | None = None,
        target: str = _LAUNCHER,
    ) -> None:  # fmt: skip
        """`message` stands in the JSON; `text` is what people read."""
        line = json_line(level, target, message) if self._json else text
        print(line, file=stream, flush=True)
