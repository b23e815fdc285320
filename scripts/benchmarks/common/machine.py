"""On what, when and with which code a benchmark ran, and what others took of the machine."""

import contextlib
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from launcher.repository import REPOSITORY
from launcher.triton.stubs import children


@dataclass(frozen=True)
class Machine:
    """Filled by look(). `load` is the number of busy processes before the benchmark began."""

    date: str
    commit: str
    processor: str
    cores: int
    memory_gib: float
    load: float
    software: str

    def lines(self) -> list[tuple[str, str]]:
        return [
            ("date", self.date),
            ("commit", self.commit),
            ("machine", f"{self.processor}, {self.cores} cores, {self.memory_gib:.0f} GiB"),
            ("load before", f"{self.load:.2f}"),
            ("software", self.software),
        ]


def look() -> Machine:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    threads = f"{torch.get_num_threads()} threads"
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        commit=_commit(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_gib=memory / (1 << 30),
        load=os.getloadavg()[0],
        software=f"Python {platform.python_version()}, PyTorch {torch.__version__}, {threads}",
    )


class OthersShare:
    """What programs that this process has not started take of the processors, since it was made."""

    def __init__(self) -> None:
        self._began = _ticks()

    def now(self) -> float:
        """A part of the machine's whole time, from 0 to 1."""
        whole, busy, own = (now - then for now, then in zip(_ticks(), self._began, strict=True))
        return max(0.0, (busy - own) / max(1, whole))


def _ticks() -> tuple[int, int, int]:
    """Clock ticks so far: of all processors, those in which they were busy, and those of this
    process and all below it."""
    line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    times = [int(word) for word in line.split()[1:9]]  # what comes then is counted before, too
    own, unseen = 0, [os.getpid()]
    while unseen:
        pid = unseen.pop()
        with contextlib.suppress(OSError):  # it has ended
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            own += int(fields[11]) + int(fields[12])
            unseen += children(pid)
    return sum(times), sum(times) - times[3] - times[4], own


def _commit() -> str:
    """The commit, with a note when files differ from it."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD").strip()
        changed = _git("status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + (" + local changes" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _processor() -> str:
    """The processor's name and its vector instructions that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    values = {key.strip(): value.strip() for key, _, value in (it.partition(":") for it in lines)}
    flags = set(values.get("flags", "").split())
    wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return " ".join([values.get("model name", platform.machine()), *wide])
