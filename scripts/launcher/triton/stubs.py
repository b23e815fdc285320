"""The processes in which a Triton server runs its Python models ("stubs").

When one dies, the server goes on and calls itself ready, but every request to that model fails; so
whoever started the server has to look.
"""

import contextlib
from pathlib import Path

_STUB = "triton_python_backend_stub"


def stubs(server_pid: int) -> dict[int, str]:
    """Process id → Triton model, of the stubs that are alive."""
    return {pid: model for pid in children(server_pid) if (model := model_of(pid))}


def model_of(pid: int) -> str:
    """The Triton model of a living stub; "" for any other process, and for a dead one."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")  # empty for a zombie
    except (FileNotFoundError, ProcessLookupError):
        return ""
    if not command[0].endswith(_STUB) or len(command) < 2:
        return ""
    return Path(command[1]).parent.parent.name  # …/<model>/<version>/model.py


def children(pid: int) -> list[int]:
    """The processes right below it, zombies too; [] when it has ended."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):  # a child belongs to a thread
        with contextlib.suppress(OSError):  # which has ended
            found += map(int, file.read_text().split())
    return found
