"""One section of the GPU benchmark, in a process of its own: only that dies with a broken device.

Started by bench_gpu.py, with the repository's source roots on the Python path.
"""

import argparse
import importlib
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.clock import bandwidth, one_line
from benchmarks.gpu.setting import OutOfTime, Record, Setting
from multilora_kernels.openai_triton import triton

_BANDWIDTH_BYTES = 4 << 30
_TINY_BYTES = 1 << 16
_LATE = 5.0  # seconds that the last cell may go on when the section's time is over


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", help="benchmarks/gpu/<section>.py has a function measure")
    parser.add_argument("--device", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--into", type=Path, required=True)
    flags = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device()) if flags.device == "cuda" else None
    setting = Setting(device or torch.device("cpu"), flags.tiny, flags.seconds, flags.peers)
    record = Record(flags.into, flags.seconds)
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, flags.seconds + _LATE)
    try:
        _measure(flags.section, setting, record)
    except (Exception, OutOfTime) as error:
        record.notes.append(f"{flags.section} ended: {one_line(error)}")
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        record.write()


def _out_of_time(*_: object) -> None:
    raise OutOfTime("the time of the section is over")


def _measure(section: str, setting: Setting, record: Record) -> None:
    num_bytes = _TINY_BYTES if setting.tiny else _BANDWIDTH_BYTES
    record.facts = device_facts(setting.device)
    record.facts["bandwidth"] = bandwidth(setting.device, num_bytes)
    measure: Callable[[Setting, Record], None]
    measure = importlib.import_module(f"benchmarks.gpu.{section}").measure
    measure(setting, record)


def device_facts(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "gpu": "cpu",
        "driver": "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": getattr(triton, "__version__", "none"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory"] = properties.total_memory
        facts["multiprocessors"] = properties.multi_processor_count
        facts["cache_bytes"] = properties.L2_cache_size
        facts["driver"] = _driver()
    return facts


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip().splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
