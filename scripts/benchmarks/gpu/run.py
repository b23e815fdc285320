"""Measure the GPU path: LoRA kernels, attention, a whole 8B model, memory, loads, in 9 minutes.

    python scripts/bench_gpu.py                  everything; writes docs/benchmarks/gpu-<name>.*
    python scripts/bench_gpu.py --peers FOLDER   beside other projects' kernels: FOLDER holds
                                                 peers_api.py, the variable GPU_PEERS names theirs
    python scripts/bench_gpu.py --only lora      one section
    TRITON_INTERPRET=1 python scripts/bench_gpu.py --device cpu --tiny
                                                 without a GPU: does it run? Figures mean nothing

Every contender is checked against float64 before it is timed, and what is compared is timed in
turn, in one process. A section that runs out of time says what it left out.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.repository import REPOSITORY

sys.path.append(str(REPOSITORY / "kernels"))  # nothing need be installed
sys.path.append(str(REPOSITORY / "client"))
sys.path.append(str(REPOSITORY / "model_repository/multilora_llm/1"))

import torch

from benchmarks.common.machine import look
from benchmarks.gpu.report import GPUReport

DOCS = REPOSITORY / "docs" / "benchmarks"
# Section → the part of the time left that it may take; the last one takes what is left.
SHARES = {"memory": 0.08, "loads": 0.06, "engine": 0.33, "attention": 0.3, "lora": 1.0}
_SECONDS = 500.0
_GRACE = 25.0  # seconds for the running cell when the time is over; then the section is killed


def main(arguments: Sequence[str] | None = None) -> int:
    flags = _parse(arguments)
    if flags.device == "cuda" and not torch.cuda.is_available():
        print("bench-gpu: PyTorch sees no GPU here; nothing to measure.")
        return 0
    began, machine = time.monotonic(), look()
    sections: dict[str, dict[str, Any]] = {}
    for name in flags.only:
        left = flags.seconds - (time.monotonic() - began)
        seconds = left * (SHARES[name] if len(flags.only) > 1 else 1.0)
        print(f"{time.monotonic() - began:5.0f} s  {name}, {seconds:.0f} s at most", flush=True)
        sections[name] = _section(name, seconds, flags)
    report = GPUReport(
        _command(flags), machine, time.monotonic() - began, sections, bool(flags.peers)
    )
    page = report.write(_out(flags))
    print(f"{report.seconds:5.0f} s  wrote {page}\n\n{report.table()}")
    return 1 if any("died" in section for section in sections.values()) else 0


def _section(name: str, seconds: float, flags: argparse.Namespace) -> dict[str, Any]:
    """What the section has written down before it ended, well or not."""
    with tempfile.TemporaryDirectory() as scratch:
        into = Path(scratch) / "section.json"
        command = [sys.executable, "-m", "benchmarks.gpu.section", name]
        command += ["--device", flags.device, "--seconds", str(seconds), "--into", str(into)]
        command += ["--tiny"] if flags.tiny else []
        command += ["--peers", str(flags.peers)] if flags.peers else []
        died = ""
        try:
            done = subprocess.run(command, env=_environment(), timeout=seconds + _GRACE)
            if done.returncode:
                died = f"ended with status {done.returncode}"
        except subprocess.TimeoutExpired:
            died = f"killed after {seconds + _GRACE:.0f} s"
        section = json.loads(into.read_text(encoding="utf-8")) if into.is_file() else {}
    return section | ({"died": died} if died else {})


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few cells")
    parser.add_argument("--peers", type=_peers, help="folder with peers_api.py")
    parser.add_argument(
        "--only", type=_names, default=list(SHARES), help="sections, as lora,memory"
    )
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="for everything")
    parser.add_argument("--out", type=Path, help="folder of page and JSON")
    flags = parser.parse_args(arguments)
    if flags.device == "cpu" and not flags.tiny:
        parser.error("--device cpu measures nothing; it needs --tiny")
    return flags


def _peers(text: str) -> Path | None:
    """The folder of the peers; "" is none, for the Makefile passes the flag in any case."""
    if not text:
        return None
    folder = Path(text).resolve()
    if not (folder / "peers_api.py").is_file():
        raise argparse.ArgumentTypeError(f"{folder} has no peers_api.py")
    kernels = os.environ.get("GPU_PEERS", "")
    if not kernels or not Path(kernels).is_dir():
        raise argparse.ArgumentTypeError(f"GPU_PEERS must name a folder, and is {kernels!r}")
    return folder


def _names(text: str) -> list[str]:
    words = {word.strip() for word in text.split(",")}
    if not words <= set(SHARES):
        raise argparse.ArgumentTypeError(f"sections are {', '.join(SHARES)}; got {text!r}")
    return [name for name in SHARES if name in words]


def _out(flags: argparse.Namespace) -> Path:
    """docs/benchmarks is for whole runs: a part would take the place of one."""
    if flags.out:
        return flags.out
    whole = not flags.tiny and flags.only == list(SHARES)
    return DOCS if whole else REPOSITORY / ".cache" / "bench-gpu"


def _command(flags: argparse.Namespace) -> str:
    words = ["python", "scripts/bench_gpu.py"]
    words += ["--device", "cpu"] if flags.device == "cpu" else []
    words += ["--tiny"] if flags.tiny else []
    words += ["--peers", "FOLDER"] if flags.peers else []
    words += ["--only", ",".join(flags.only)] if flags.only != list(SHARES) else []
    words += ["--seconds", f"{flags.seconds:g}"] if flags.seconds != _SECONDS else []
    return shlex.join(words)
