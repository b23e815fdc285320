"""The process of a ProcessPool: lines of JSON in, lines of JSON out, until the input ends.

The first line sets the process up, every other one is a question. A question that takes too much
processor time ends the process by SIGPROF, one that takes too much memory by MEMORY_STATUS.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

_BUFFER_BYTES = 1 << 18
MEMORY_STATUS = 86  # of a process that ran out of the memory that it may take
_NICE = 5  # on full cores the engine, whose streams wait, gets three times the time of a question


def serve(
    prepare: Callable[[Any], Callable[[bytes], Any]], most_seconds: float, most_bytes: int
) -> None:
    """Answer with what `prepare` makes of the first line: a function from the text of a question to
    what JSON can say.

    A question may take `most_seconds` of processor time, and the process `most_bytes` of address
    space beside what it has after `prepare`.
    """
    _plain_signals()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICE)
    lines = open(0, "rb", buffering=_BUFFER_BYTES, closefd=False)  # noqa: SIM115 - until it ends
    answer = prepare(json.loads(lines.readline()))
    own = _address_space()
    _limit_address_space(own + most_bytes)
    _say(None)
    for line in lines:
        signal.setitimer(signal.ITIMER_PROF, most_seconds)
        try:
            _say(answer(line))
        except MemoryError:
            os._exit(MEMORY_STATUS)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if _address_space() > own + most_bytes // 2:
            return  # so that no question finds less than half; the next one gets a new process


def _plain_signals() -> None:
    """A process inherits which signals its parent ignores and blocks."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _address_space() -> int:
    """Bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _limit_address_space(most: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _say(answer: Any) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()
