"""What the launcher's processes have in common: how they start and end, and the error of both.

Law: no process outlives its launcher, however that ends, nor do the processes that it started
itself. Each child leads a process group, in which a guard waits for the launcher's end of a pipe to
close, and then kills the group.
"""

import contextlib
import os
import resource
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_GUARDED = """
exec 3<&0 </dev/null
(read -r _ <&3; kill -KILL 0) >/dev/null 2>&1 &
exec 3<&-
ulimit -S -s "$1" && shift && exec "$@"
"""
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STACK_BYTES = 256 << 20  # Triton's HTTP library overflows 8 MiB by one body of 4.2 MB


class LaunchError(Exception):
    """A process cannot be started or has died; the message is one line with the remedy."""


class Startable(ABC):
    """What is started at the beginning of a `with` block and stopped at its end."""

    @abstractmethod
    def start(self) -> None:
        """Return once the process serves, or is on its way to; LaunchError when it cannot."""

    @abstractmethod
    def serves(self) -> bool:
        """Whether it serves by now; LaunchError when it has died, or a part of it."""

    @abstractmethod
    def stop(self) -> None:
        """End the process. Safe to call twice; it may be started again."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def leave_init_behind() -> None:
    """Go on as a child when this is the first process of a container, which inherits the orphans of
    all others: what stays behind buries them, passes signals on, and ends as the child does."""
    if os.getpid() != 1:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # until it is clear who takes them
    child = os.fork()
    if child:
        for number in _PASSED_ON:
            signal.signal(number, lambda number, _: os.kill(child, number))
    else:
        os.setpgid(0, 0)  # so that Ctrl-C comes from the init alone
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while child:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def start_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    cwd: Path | None = None,
    stderr: int | None = None,
) -> "subprocess.Popen[str]":
    """Start `command` as the leader of a group that dies with this process. Its standard output is
    a pipe; `environment` comes beside this process's own."""
    return subprocess.Popen(
        ["/bin/sh", "-c", _GUARDED, "sh", str(stack_bytes() >> 10), *command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,  # the guard waits for its end
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches the launcher alone, which stops all in order
    )


def end_child(process: "subprocess.Popen[str]") -> None:
    """Kill what is left of a child's group, and wait for the child."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()


def stack_bytes() -> int:
    """The stack of a child's threads, by its soft limit: _STACK_BYTES, less where the hard limit is
    lower, and unchanged where the kernel sets all memory aside that threads could ever use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != resource.RLIM_INFINITY and (soft > _STACK_BYTES or _sets_all_aside()):
        return soft
    return _STACK_BYTES if hard == resource.RLIM_INFINITY else min(_STACK_BYTES, hard)


def stack_warning() -> list[str]:
    """What to say of a stack that is smaller than it should be."""
    if (found := stack_bytes()) >= _STACK_BYTES:
        return []
    return [
        f"threads of the Triton server have stacks of {found >> 10} KiB, so that a long body of a "
        f"request may crash it; allow {_STACK_BYTES >> 10} KiB (ulimit -Hs, and not "
        "vm.overcommit_memory=2)"
    ]


def _sets_all_aside() -> bool:
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return False
