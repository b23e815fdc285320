"""Measure decoding on a CPU: our server, other projects' in turn with it, and the floor of memory.

    scripts/bench_cpu.py --peers FOLDER      12 minutes; writes docs/benchmarks/decode-cpu.*
    scripts/bench_cpu.py                     ours alone
    scripts/bench_cpu.py --class             ours, beside ours with the base's class in transformers
    scripts/bench_cpu.py --quick             one batch and one round: does it run?

The variable CPU_PEERS names the folder of models/SIZE, adapters/SIZE/a00 … and, of the peers,
venvs/NAME; FOLDER holds the bench_peers.py that measures those. Without CPU_PEERS the base is the
demo's, whose figures say little. Contenders take turns: each round starts, measures and stops every
one of them, but for the slow ones, which have one turn in the time that is left. A round that does
not fit into --seconds is left out. Needs a quiet machine; the table tells what others took of it.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.repository import REPOSITORY

sys.path.append(str(REPOSITORY / "model_repository/multilora_llm/1"))  # as the Triton server does

from benchmarks.common.machine import look
from benchmarks.common.statistics import median
from benchmarks.cpu.contenders import SCRIPT, Cells, Outcome, Peer, measure_ours
from benchmarks.cpu.load import MODES, DecodeLoad, read_bandwidth
from benchmarks.cpu.report import OURS, CPUReport
from multilora.errors import StartupError

DOCS = REPOSITORY / "docs" / "benchmarks"
PEERS = ("vllm", "peft")
CLASS = "class"  # what ours is called with --model-impl transformers
_SLOW = ("peft",)  # these have one turn
_DEMO = REPOSITORY / "model_repository/multilora_llm/1/demo"
_BATCHES = [1, 8, 32]
_QUICK_BATCHES = [8]
_LEAST_SECONDS = 30.0  # in which a peer can be started and measured
Measure = Callable[[float], Outcome]  # within so many seconds


@dataclass
class Contest:
    """What the contenders gave so far. `seconds` is how long the last turn of each took."""

    contenders: dict[str, Measure]
    deadline: float  # of the clock
    clock: Callable[[], float] = time.monotonic
    samples: dict[str, dict[int, Cells]] = field(default_factory=dict)
    bandwidths: list[float] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, count: int, threads: int) -> None:
        """Every second round goes backwards. Without ours there is nothing to compare."""
        for number in range(count):
            names = [name for name in self.contenders if name not in (*_SLOW, *self.failed)]
            if OURS in self.failed:
                return
            if number and sum(self.seconds.get(name, 0.0) for name in names) > self._left():
                self.remarks.append(f"no time was left for rounds {number + 1} to {count}")
                break
            self.bandwidths.append(read_bandwidth(threads))
            for name in names if number % 2 else names[::-1]:
                self._turn(name, number)
        last = max(self.samples[OURS])
        for name in filter(self.contenders.__contains__, _SLOW):
            self._turn(name, last)

    def _turn(self, name: str, number: int) -> None:
        """A contender that fails is left alone from then on; its cells so far count. One that is
        stopped when the time is over has not failed."""
        left, began = self._left(), self.clock()
        if name != OURS and left < _LEAST_SECONDS:
            self.remarks.append(f"no time was left for {name} in round {number + 1}")
            return
        print(f"{left:5.0f} s left  round {number + 1}, {name}", flush=True)
        turn = self.contenders[name](left)
        self.samples.setdefault(name, {})[number] = turn.cells
        self.seconds[name] = self.clock() - began
        if turn.problem:
            self.remarks.append(f"{name} in round {number + 1}: {turn.problem}")
            if name == OURS or self._left() > 0:
                self.failed.add(name)

    def _left(self) -> float:
        return self.deadline - self.clock()


def main(arguments: Sequence[str] | None = None) -> int:
    flags = _parse(arguments)
    machine, began = look(), time.monotonic()
    peers = {name: Peer(name, flags.peers, flags.installed, flags.size) for name in flags.only}
    try:
        load = _load(flags)
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    contenders: dict[str, Measure] = {OURS: lambda _: measure_ours(load)}
    if flags.beside_class:
        contenders[CLASS] = lambda _: measure_ours(load, "transformers")
    for name, peer in peers.items():
        contenders[name] = lambda seconds, peer=peer: peer.measure(load, seconds)
    contest = Contest(contenders, began + flags.seconds)
    contest.run(flags.rounds, load.threads)
    report = CPUReport(
        command=_command(flags),
        machine=machine,
        seconds=time.monotonic() - began,
        load=load,
        bandwidth=median(contest.bandwidths),
        versions={name: peer.versions() for name, peer in peers.items()},
        samples={name: contest.samples[name] for name in contenders if name in contest.samples},
        remarks=contest.remarks,
    )
    page = report.write(_out(flags))
    print(f"wrote {page}\n\n{report.table()}")
    return 1 if contest.failed else 0


def _load(flags: argparse.Namespace) -> DecodeLoad:
    """Raises StartupError when the models are not there."""
    base, adapters = _DEMO / "base", sorted((_DEMO / "adapters").iterdir())
    if flags.installed:
        base = flags.installed / "models" / flags.size
        adapters = sorted((flags.installed / "adapters" / flags.size).glob("a[0-9][0-9]"))
        if not adapters or not base.is_dir():
            raise StartupError(f"{base} or its adapters do not exist; make_models.py writes them")
    batches = flags.batches or (_QUICK_BATCHES if flags.quick else _BATCHES)
    return DecodeLoad(
        base=base,
        adapters=tuple(adapters),
        batches=tuple(batches),
        modes=tuple(flags.modes),
        prompt_tokens=flags.prompt_tokens,
        new_tokens=flags.new_tokens,
        threads=flags.threads,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peers", type=_peers, help=f"folder with {SCRIPT}")
    add("--only", type=_words(PEERS), default=list(PEERS), help="peers, as vllm,peft")
    add("--class", dest="beside_class", action="store_true", help="ours twice, see above")
    add("--batches", type=_numbers, help="default 1,8,32")
    add("--modes", type=_words(MODES), default=list(MODES), help="none,distinct")
    add("--rounds", type=int, help="default 3")
    add("--quick", action="store_true", help="one batch of 8 and one round")
    add("--seconds", type=float, default=700.0, help="for everything (700)")
    add("--size", default="small", help="of the models (small)")
    add("--prompt-tokens", type=int, default=128)
    add("--new-tokens", type=int, default=64)
    add("--threads", type=int, default=2)
    add("--out", type=Path, help="folder of page and JSON")
    flags = parser.parse_args(arguments)
    flags.rounds = flags.rounds or (1 if flags.quick else 3)
    flags.only = flags.only if flags.peers else []
    installed = os.environ.get("CPU_PEERS", "")
    flags.installed = Path(installed).resolve() if installed else None
    if flags.peers and not (flags.installed and flags.installed.is_dir()):
        parser.error(f"CPU_PEERS must name the folder of models and peers; it is {installed!r}")
    return flags


def _peers(text: str) -> Path | None:
    """The folder of SCRIPT; "" is none, for the Makefile passes the flag in any case."""
    if not text:
        return None
    folder = Path(text).resolve()
    if not (folder / SCRIPT).is_file():
        raise argparse.ArgumentTypeError(f"{folder} has no {SCRIPT}")
    return folder


def _words(known: Sequence[str]) -> Callable[[str], list[str]]:
    def words(text: str) -> list[str]:
        given = {word.strip() for word in text.split(",")}
        if not given <= set(known):
            raise argparse.ArgumentTypeError(f"known are {', '.join(known)}; got {text!r}")
        return [name for name in known if name in given]

    return words


def _numbers(text: str) -> list[int]:
    numbers = sorted({int(word) for word in text.split(",")})
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"must be positive; got {text!r}")
    return numbers


def _out(flags: argparse.Namespace) -> Path:
    """docs/benchmarks is for whole runs: a part would take the place of one."""
    if flags.out:
        return flags.out
    asked = (flags.only, flags.batches or _BATCHES, flags.modes, flags.size)
    whole = not (flags.quick or flags.beside_class) and asked == (
        list(PEERS),
        _BATCHES,
        list(MODES),
        "small",
    )
    return DOCS if whole else REPOSITORY / ".cache" / "bench-cpu"


def _command(flags: argparse.Namespace) -> str:
    words = [".venv/bin/python", "scripts/bench_cpu.py"]
    words += ["--peers", "FOLDER"] if flags.peers else []
    words += ["--quick"] if flags.quick else []
    words += ["--class"] if flags.beside_class else []
    if flags.peers and flags.only != list(PEERS):
        words += ["--only", ",".join(flags.only)]
    words += ["--batches", ",".join(map(str, flags.batches))] if flags.batches else []
    words += ["--modes", ",".join(flags.modes)] if flags.modes != list(MODES) else []
    words += ["--rounds", str(flags.rounds)] if flags.rounds != (1 if flags.quick else 3) else []
    words += ["--size", flags.size] if flags.size != "small" else []
    for name, usual in (("prompt_tokens", 128), ("new_tokens", 64), ("threads", 2)):
        if getattr(flags, name) != usual:
            words += [f"--{name.replace('_', '-')}", str(getattr(flags, name))]
    words += ["--seconds", f"{flags.seconds:g}"] if flags.seconds != 700 else []
    return shlex.join(words)
