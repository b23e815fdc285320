"""Attack a server for a while and print what broke: one row an attack, one column a kind of fault.

    python scripts/torture.py                        a minute of all attacks, and their overhead
    python scripts/torture.py --seconds 3600 --markdown
    python scripts/torture.py --only storm,churn --seed 7

Columns. operations: what the attack did. wrong: answers that are not the known ones. leaks: what is
held when all is quiet again, by /metrics and /proc. errors: those that explain nothing. deaths:
processes that ended without the attack having ended them. pace: the canary's 99th percentile
between tokens ÷ the same beside so many clients who do no harm as the next column says; that is how
many requests of the attack run at once. With --roomy that is looked at just before and just after
each attack, for a machine has slower minutes. canary: whether its texts were right. The exit code
is 1 when a column that counts faults is not 0, a text of the canary is wrong, or, with --roomy, its
pace is above --pace.

By default the server has little memory: sequences are preempted and adapters evicted all the time,
which finds faults, and makes streams wait. With --roomy nobody waits for memory.
"""

import argparse
import functools
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.common.statistics import markdown_table, text_table
from launcher.process import LaunchError
from torture.attacks.adapters import churn, listing
from torture.attacks.bodies import bodies
from torture.attacks.folders import folders, templates
from torture.attacks.kills import kills, stops
from torture.attacks.overload import overload
from torture.attacks.raw import gateway_bytes, triton_bytes
from torture.attacks.soak import soak
from torture.attacks.storm import storm
from torture.attacks.tensors import tensors
from torture.canary import Canary, Song, pace
from torture.findings import Findings, Round
from torture.processes import HELPER
from torture.quiet import QuietState
from torture.server import MOST_REQUESTS, ServerUnderTest

_WARM_SECONDS = 1.0  # of an attack
_CALM_SECONDS = 6.0
_SERVES_AGAIN_SECONDS = 30.0
_LOG_LINES = 60
_TERMINATED = 128 + signal.SIGTERM  # the exit code


class Attack(NamedTuple):
    """`share` of the seconds. `running`: how many requests of the attack run at once, 0 where none
    need be good. `breaks`: it ends streams of others, as the canary's, on purpose; `crowds`: it
    fills the server, so that the canary may be refused."""

    run: Callable[[Round], None]
    share: float = 1.0
    running: int = 0
    breaks: bool = False
    crowds: bool = False


def _overload(times: int) -> Attack:
    run = functools.partial(overload, clients=times * MOST_REQUESTS)
    return Attack(run, running=MOST_REQUESTS - 1, crowds=True)


ATTACKS = {
    "churn": Attack(churn, 2, running=6),
    "listing": Attack(listing, running=8),
    "storm": Attack(storm, 2, running=8),
    "bodies": Attack(bodies, 2, running=4),  # many of them are good enough to be answered
    "tensors": Attack(tensors),
    "folders": Attack(folders, running=3),
    "overload10": _overload(10),
    "overload50": _overload(50),
    "raw": Attack(gateway_bytes, 2),
    "soak": Attack(soak, 4, running=4),
    "templates": Attack(templates, 2),
    "triton": Attack(triton_bytes),
    "kills": Attack(kills, 2, breaks=True),
    "stops": Attack(stops, 2, breaks=True),
}
_COLUMNS = [
    "attack",
    "operations",
    "wrong",
    "leaks",
    "errors",
    "deaths",
    "pace",
    "beside",
    "canary",
]


class Row(NamedTuple):
    """`pace` is None when the canary had no two tokens."""

    name: str
    findings: Findings
    pace: float | None = None
    beside: int = 0
    canary: str = ""

    @property
    def cells(self) -> list[str]:
        found = self.findings
        counts = found.operations, found.wrong, found.leaks, found.errors, found.deaths
        shown = "" if self.pace is None else f"{self.pace:.2f}"
        return [self.name, *map(str, counts), shown, shown and str(self.beside), self.canary]

    def is_faulty(self, most_pace: float = 0) -> bool:
        found = self.findings
        faults = found.wrong + found.leaks + found.errors + found.deaths
        too_slow = bool(most_pace and self.pace and self.pace > most_pace)
        return bool(faults) or self.canary == "WRONG" or too_slow


def main(arguments: list[str] | None = None) -> int:
    flags = _flags(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # the server ends, too
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        server = ServerUnderTest(Path(folder), flags.memory_guard, roomy=flags.roomy)
        try:
            rows = _all_rounds(server, flags)
        except LaunchError as error:
            rows = []
            print(f"error: {error}", file=sys.stderr)
        finally:
            server.stop()
        faulty = [row for row in rows if row.is_faulty(flags.pace if flags.roomy else 0)]
        if faulty or not rows:
            print("", *server.log.read_text(errors="replace").splitlines()[-_LOG_LINES:], sep="\n")
    for row in rows:
        for sample in row.findings.samples:
            print(f"{row.name}, seed {flags.seed}: {sample}")
    cells = [_COLUMNS, *(row.cells for row in rows)]
    print(f"\n{markdown_table(cells) if flags.markdown else text_table(cells)}")
    if faulty:
        names = ",".join(row.name for row in faulty if row.name in ATTACKS)
        print(f"\nagain: --seed {flags.seed} --seconds {flags.seconds:g} --only {names}")
    return 1 if faulty or not rows else 0


def _flags(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="of all attacks together")
    parser.add_argument("--seed", type=int, default=0, help="the same seed sends the same inputs")
    parser.add_argument("--only", default=",".join(ATTACKS), help=f"some of {', '.join(ATTACKS)}")
    parser.add_argument("--roomy", action="store_true", help="memory for all; judges the pace")
    parser.add_argument("--pace", type=float, default=2.0, help="the slowest pace; 0: any")
    help_ = "MB that a process may grow by before it is ended"
    parser.add_argument("--memory-guard", type=float, default=3000, help=help_)
    parser.add_argument("--markdown", action="store_true", help="the table for a page")
    flags = parser.parse_args(arguments)
    flags.only = [name.strip() for name in flags.only.split(",") if name.strip()]
    if unknown := [name for name in flags.only if name not in ATTACKS]:
        parser.error(f"there is no attack {unknown[0]}; there are {', '.join(ATTACKS)}")
    return flags


def _all_rounds(server: ServerUnderTest, flags: argparse.Namespace) -> list[Row]:
    quiet = _started(server)
    canary = Canary(server.gateway, [e for e in server.examples if e.adapter_id in ("sql", "")])
    rows: list[Row] = []
    try:
        calm = [] if flags.roomy else _calm(server, canary, 0)
        shares = sum(ATTACKS[name].share for name in flags.only)
        for name in flags.only:
            seconds = flags.seconds * ATTACKS[name].share / shares
            print(f"{name}: {seconds:.0f} s", flush=True)
            findings = Findings()
            beside = ATTACKS[name].running if flags.roomy else 0
            before = _calm(server, canary, beside) if flags.roomy else calm
            songs = _round(
                server, canary, quiet, Round(name, server, flags.seed, seconds, findings)
            )
            after = _calm(server, canary, beside) if flags.roomy and server.is_running else []
            ratio = pace_ratio(songs, before + after)
            rows.append(Row(name, findings, ratio, beside, _heard(name, findings, songs)))
            if not server.is_running:
                server.stop()
                quiet = _started(server)
    finally:
        canary.close()
    end = Findings()
    for what in server.stop():
        end.fault("leaks", what)
    return [*rows, Row("the end", end)]


def _started(server: ServerUnderTest) -> QuietState:
    """Every pool and connection of the server is made once before anything is counted."""
    server.start()
    for attack in (storm, listing):
        attack(Round("warm-up", server, 0, _WARM_SECONDS, Findings()))
    return QuietState(server)


def _calm(server: ServerUnderTest, canary: Canary, clients: int) -> list[Song]:
    """The canary's songs beside so many clients who do no harm."""
    canary.sing()
    calm = Round(f"calm {clients}", server, 0, _CALM_SECONDS, Findings())
    overload(calm, clients)
    time.sleep(max(0.0, calm.left))
    songs = canary.rest()
    if pace(songs) is None:
        raise LaunchError("no stream of the canary has tokens")
    return songs


def pace_ratio(songs: list[Song], calm: list[Song]) -> float | None:
    """The pace of songs ÷ that of calm ones; None where one has no tokens."""
    now, then = pace(songs), pace(calm)
    if not now or not then:
        return None
    print(f"the pace: {1000 * now:.0f} ms; beside nobody who does harm {1000 * then:.0f} ms")
    return now / then


def _round(server: ServerUnderTest, canary: Canary, quiet: QuietState, round_: Round) -> list[Song]:
    """The canary's songs."""
    findings, before = round_.findings, server.processes()
    server.on_greed = functools.partial(findings.fault, "deaths")
    canary.sing()
    try:
        ATTACKS[round_.name].run(round_)
    except Exception as error:  # the next attacks can still tell something
        findings.fault("errors", f"the attack itself: {type(error).__name__}: {error}")
    songs = canary.rest()
    if not server.wait_serving(_SERVES_AGAIN_SECONDS):
        findings.fault("errors", f"no right answer within {_SERVES_AGAIN_SECONDS:.0f} s")
    for what in quiet.leaks() if server.is_running else ():
        findings.fault("leaks", what)
    after = server.processes()
    for pid in before.keys() - after.keys() - findings.ended:
        if before[pid] != HELPER:
            findings.fault("deaths", f"{before[pid]} (process {pid}) has ended")
    return songs


def _heard(name: str, findings: Findings, songs: list[Song]) -> str:
    """What became of the canary's texts."""
    wrong = [song.problem for song in songs if song.problem and not song.broken]
    findings.samples += [f"canary: {problem}" for problem in wrong]
    broken = [song.problem for song in songs if song.broken]
    refused = ATTACKS[name].crowds and all("overloaded" in problem for problem in broken)
    if broken and not ATTACKS[name].breaks and not refused:
        findings.fault("errors", f"{len(broken)} streams of the canary broke; {broken[0]}")
    return "WRONG" if wrong else "right" if songs else "silent"
