"""Whether processes live, by their state: a command line is empty during execve, too."""

import time
from pathlib import Path


def is_alive(pid: int) -> bool:
    """False for a zombie, too: an orphan's remains are its new parent's to bury."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"  # the name before it may hold anything


def assert_end(*pids: int, seconds: float = 10.0) -> None:
    """Each of them ends within `seconds`; one that was killed takes a moment for it."""
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"alive: {alive}"
        time.sleep(0.01)
