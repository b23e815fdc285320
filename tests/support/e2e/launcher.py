"""A launcher as a process, and what it has started."""

import os
import subprocess
import sys
from pathlib import Path

from launcher.repository import REPOSITORY

SECONDS = 90.0  # nothing may take longer
_SERVE = [sys.executable, str(REPOSITORY / "scripts/serve.py")]
_FREE_PORTS = ["--port=0", "--http-port=0", "--grpc-port=0", "--metrics-port=0"]


def start_launcher(*flags: str) -> "subprocess.Popen[str]":
    """Serves the demo on free ports, unless `flags` say otherwise."""
    return subprocess.Popen(
        [*_SERVE, *_FREE_PORTS, *flags],  # a later flag wins
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "THREADS": "1", "MODEL_ID": "", "LORA_ADAPTERS": ""},
        cwd=REPOSITORY.parent,
    )


def children(pid: int) -> list[int]:
    """Empty for a process that has ended."""
    files = Path(f"/proc/{pid}/task").glob("*/children")  # a child belongs to a thread
    try:
        return [int(child) for file in files for child in file.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
