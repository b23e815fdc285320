"""The processes of a server as /proc shows them: names, memory, descriptors, threads."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from launcher.triton.stubs import children

HELPER = "helper"  # a process that another one starts and ends as it likes
_SHARED = Path("/dev/shm")


class ProcessFigures(NamedTuple):
    """`rss` is in MB."""

    rss: float
    fds: float
    threads: float


def tree(root: int) -> dict[int, str]:
    """Process id → name, of a launcher that is alive and of all below it; {} when it has ended.

    Names are launcher, gateway, triton, those of Triton's Python models, and HELPER.
    """
    found = {root: "launcher"} if _is_alive(root) else {}
    unseen = [*found]
    while unseen:
        parent = unseen.pop()
        for child in children(parent):
            if child not in found and _is_alive(child):
                found[child] = _name(_read(child, "cmdline").split("\0"), found[parent])
                unseen.append(child)
    return found


def figures(pid: int) -> ProcessFigures | None:
    """None when the process has ended."""
    status = _read(pid, "status")
    rss, threads = (re.search(rf"{name}:\s+(\d+)", status) for name in ("VmRSS", "Threads"))
    try:
        fds = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    return ProcessFigures(int(rss[1]) / 1024, fds, int(threads[1])) if rss and threads else None


def shared_files(pids: Iterable[int]) -> set[str]:
    """The files in /dev/shm that the processes have mapped."""
    maps = "".join(_read(pid, "maps") for pid in pids)
    return set(re.findall(rf" {_SHARED}/(\S+)$", maps, re.MULTILINE))


def existing(shared: Iterable[str]) -> list[str]:
    return sorted(name for name in shared if (_SHARED / name).exists())


def _name(command: list[str], parent: str) -> str:
    if parent == "launcher" and Path(command[0]).name == "tritonserver":
        return "triton"
    if parent == "launcher" and "multilora_gateway" in command[1:4]:
        return "gateway"
    if parent == "triton" and command[0].endswith("triton_python_backend_stub"):
        return Path(command[1]).parent.parent.name  # …/<model>/<version>/model.py
    return HELPER


def _is_alive(pid: int) -> bool:
    """By its state: a command line is empty for a zombie, but also during execve."""
    state = _read(pid, "stat").rpartition(")")[2].split()[:1]
    return bool(state) and state[0] not in "ZX"


def _read(pid: int, name: str) -> str:
    """A file of the process; "" when it has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
