"""The files in /dev/shm through which a Triton server talks to the processes of its models.

They hold the texts of requests. The Python backend lets everybody read them, whatever the umask,
and leaves them behind when it is killed. So each server has a prefix of its own, which names its
owner, the process that started it: what the owner of a prefix left behind is known by that.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

_FOLDER = Path("/dev/shm")
_NAME = "multilora-"


def new_prefix() -> str:
    """A prefix for the files of a server that this process starts."""
    return f"{_NAME}{_namespace()}-{os.getpid()}-{secrets.token_hex(4)}-"


def make_private(prefix: str) -> None:
    """Let nobody but their owner read the files of a server."""
    for path in _files(prefix):
        with contextlib.suppress(FileNotFoundError):
            path.chmod(0o600)


def remove(prefix: str) -> None:
    """Remove the files of a server that has ended."""
    for path in _files(prefix):
        path.unlink(missing_ok=True)


def remove_leftovers() -> None:
    """Remove the files of servers whose owner has ended; other users' are theirs to remove."""
    ours = f"{_NAME}{_namespace()}-"
    for path in _files(ours):
        owner = path.name.removeprefix(ours).partition("-")[0]
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_uid == os.geteuid() and not Path("/proc", owner).exists():
                path.unlink()


def _files(prefix: str) -> Iterator[Path]:
    return _FOLDER.glob(f"{prefix}*")


def _namespace() -> int:
    """Containers may share /dev/shm, and not the numbers of their processes."""
    return os.stat("/proc/self/ns/pid").st_ino
