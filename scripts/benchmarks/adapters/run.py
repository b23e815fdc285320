"""Measure what adapters cost while they live: cold starts, loads, evictions, thousands of names.

    .venv/bin/python scripts/bench_adapters.py              everything; writes docs/benchmarks/
    .venv/bin/python scripts/bench_adapters.py --only 1,2   some of it
    .venv/bin/python scripts/bench_adapters.py --quick      a tiny model, seconds: does it run?

One engine in this process, a Llama-shaped base model of 100 M random parameters, adapters of rank
16. All ratios are between numbers of the same run. Needs two quiet cores for its 10 minutes.

1  first token of an adapter that was never read / of a warm one
2  p99 time between tokens of running streams while 50 adapters load / while none do
3  first token with 16 adapters in room for 8 / with 8
4  throughput with 2000 adapters under power-law traffic / with 5
"""

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from launcher.repository import REPOSITORY

sys.path.append(str(REPOSITORY / "model_repository/multilora_llm/1"))  # as the Triton server does

from benchmarks.adapters.checkpoint import CACHE
from benchmarks.adapters.client import BenchmarkError
from benchmarks.adapters.cold import measure_cold
from benchmarks.adapters.many import measure_many
from benchmarks.adapters.plan import FULL, QUICK, BenchmarkPlan
from benchmarks.adapters.report import AdaptersReport
from benchmarks.adapters.room import measure_room
from benchmarks.adapters.streams import measure_streams
from benchmarks.common.machine import look
from benchmarks.common.statistics import Result
from multilora.errors import RequestError, StartupError

SCENARIOS: dict[int, Callable[[BenchmarkPlan], Result]] = {
    1: measure_cold,
    2: measure_streams,
    3: measure_room,
    4: measure_many,
}
DOCS = REPOSITORY / "docs" / "benchmarks"


def main(arguments: Sequence[str] | None = None) -> int:
    flags = _parse(arguments)
    logging.basicConfig(level=logging.WARNING)
    plan = replace(QUICK if flags.quick else FULL, dtype=flags.dtype)
    machine, began = look(), time.monotonic()
    results: dict[int, Result] = {}
    try:
        for number in flags.only:
            print(f"{time.monotonic() - began:5.0f} s  scenario {number}", flush=True)
            results[number] = SCENARIOS[number](plan)
    except (BenchmarkError, RequestError, StartupError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = AdaptersReport(_command(flags), plan, machine, time.monotonic() - began, results)
    page = report.write(_out(flags))
    for number, result in results.items():
        print(f"{number}  {result.title}\n   {result.note}")
    print(f"{report.seconds:5.0f} s  wrote {page}\n\n{report.table()}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model and few samples")
    parser.add_argument(
        "--only", type=_numbers, default=list(SCENARIOS), help="scenarios, such as 1,2"
    )
    parser.add_argument("--out", type=Path, help="folder of page, plots and JSON")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=FULL.dtype)
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    words = {word.strip() for word in text.split(",")}
    known = {str(number) for number in SCENARIOS}
    if not words <= known:
        raise argparse.ArgumentTypeError(f"scenarios are {', '.join(sorted(known))}; got {text!r}")
    return sorted(map(int, words))


def _out(flags: argparse.Namespace) -> Path:
    """docs/benchmarks holds whole runs only."""
    if flags.out:
        return flags.out
    whole = not flags.quick and flags.only == list(SCENARIOS)
    return DOCS if whole else CACHE / "report"


def _command(flags: argparse.Namespace) -> str:
    words = [".venv/bin/python", "scripts/bench_adapters.py"]
    words += ["--quick"] if flags.quick else []
    words += ["--only", ",".join(map(str, flags.only))] if flags.only != list(SCENARIOS) else []
    words += ["--dtype", flags.dtype] if flags.dtype != FULL.dtype else []
    return shlex.join(words)
