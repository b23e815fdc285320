"""What the host costs beside a GPU: the whole server over gRPC, with a device that is a clock.

    python scripts/bench_host.py            32 and 128 streams, each of 400 tokens, 3 rounds

The streams are read through two shared streams, as a gateway reads its own, or each on its own.
Passes take the time they took on an H100 (times.py), so tokens per second are bounded by rows /
pass time, and what is missing to that is the host's: scheduling, detokenising, sending. It prints
the ratio to the bound; the time between the messages of a stream in passes (gap), half of the gaps
and 99 % being shorter; tokens in a message; and the processor time of the engine's process for each
token. Medians of the rounds. Needs no GPU; quiet cores help, since the readers take two.
"""

import argparse
import itertools
import os
import shutil
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.common.statistics import median, percentile, text_table
from benchmarks.host.load import StreamTimes, read
from benchmarks.host.times import pass_seconds
from launcher.repository import REPOSITORY
from launcher.triton.server import TritonServer

_COLUMNS = (
    "streams", "read", "tok/s", "bound", "ratio", "gap p50", "gap p99", "tok/message", "µs/token"
)  # fmt: skip
_ENGINE = "multilora_llm"
_INSTALL = """import sys
sys.path.append({scripts!r})
from benchmarks.host.waiting_runner import install
install()
"""
SETTINGS = {"MODEL_ID": "", "LORA_ADAPTERS": "", "MAX_RUNNING_REQUESTS": "128", "THREADS": "1"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args(arguments)
    table = [[*_COLUMNS]]
    with (
        tempfile.TemporaryDirectory() as scratch,
        TritonServer(SETTINGS, model_repository=waiting_repository(scratch)) as server,
    ):
        server.wait_ready()
        read(server.grpc_address, 8, 8)  # opens what is opened once
        for streams, shared in itertools.product(flags.streams, (True, False)):
            step = pass_seconds(streams)
            rounds = [
                measured(server, streams, flags.tokens, step, shared) for _ in range(flags.rounds)
            ]
            rate, gap, tail, each, cost = (median(values) for values in zip(*rounds, strict=True))
            bound = streams / step
            numbers = (f"{rate:.0f}", f"{bound:.0f}", f"{rate / bound:.3f}")
            gaps = (f"{gap:.2f} passes", f"{tail:.2f}", f"{each:.2f}", f"{cost:.0f}")
            table.append([str(streams), "shared" if shared else "own", *numbers, *gaps])
    print(text_table(table))
    return 0


def waiting_repository(scratch: str) -> Path:
    """The model repository, with the waiting runner in the engine."""
    whole = Path(scratch) / "model_repository"
    shutil.copytree(REPOSITORY / "model_repository", whole)
    model = whole / _ENGINE / "1" / "model.py"
    lines = model.read_text(encoding="utf-8").splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if "from multilora.engine import Engine" in line)
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    install = _INSTALL.format(scripts=str(REPOSITORY / "scripts")).splitlines(keepends=True)
    lines[at:at] = [indent + line for line in install]
    model.write_text("".join(lines), encoding="utf-8")
    return whole


def measured(
    server: TritonServer, streams: int, tokens: int, step: float, shared: bool
) -> tuple[float, float, float, float, float]:
    """Tokens per second while all streams decode; median and 99th percentile of the time between
    two messages by `step`; tokens a message; microseconds of the engine's process a token."""
    began = _processor_seconds(server)
    readings = read(server.grpc_address, streams, tokens, shared)
    spent = _processor_seconds(server) - began
    start = max(reading.times[0] for reading in readings)
    end = min(reading.times[-1] for reading in readings)
    counted = [_within(reading, start, end) for reading in readings]
    gaps = [(after - before) / step for _, times in counted for before, after in pairwise(times)]
    received = sum(number for number, _ in counted)
    messages = sum(len(times) for _, times in counted)
    rate = received / (end - start)
    cost = 1e6 * spent / (streams * tokens)
    return rate, median(gaps), percentile(gaps, 99), received / messages, cost


def _within(reading: StreamTimes, start: float, end: float) -> tuple[int, list[float]]:
    kept = [
        (time, number)
        for time, number in zip(reading.times, reading.tokens, strict=True)
        if start < time <= end
    ]
    return sum(number for _, number in kept), [time for time, _ in kept]


def _processor_seconds(server: TritonServer) -> float:
    """User and system time of the engine's process so far."""
    (pid,) = (pid for pid, name in server.stubs.items() if name == _ENGINE)
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
