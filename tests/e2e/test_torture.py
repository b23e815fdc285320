"""A short run of the attacks on a server of their own: nothing breaks, and a fault is counted."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.repository import REPOSITORY
from torture.canary import Song
from torture.findings import Findings
from torture.run import Row, pace_ratio

SECONDS = 300.0
ATTACKS = ("churn", "listing", "storm", "bodies", "tensors")


def test_no_attack_breaks_the_server() -> None:
    command = [sys.executable, str(REPOSITORY / "scripts/torture.py")]
    command += ["--seconds=7", f"--only={','.join(ATTACKS)}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    for attack in ATTACKS:
        row = next(row for row in rows if row and row[0] == attack and len(row) > 5)
        assert int(row[1]) > 0 and row[-1] == "right", done.stdout


def test_a_run_that_is_told_to_end_takes_its_server_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-u", str(REPOSITORY / "scripts/torture.py"), "--only=churn"]
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as run:
        assert run.stdout and any(line.startswith("churn:") for line in run.stdout)
        (folder,) = tmp_path.iterdir()
        assert named(folder), "its launcher"
        run.terminate()
        assert run.wait(60) == 128 + signal.SIGTERM
    assert not named(folder) and not folder.exists()


def test_the_pace_is_that_of_the_calm_beside() -> None:
    calm = [Song([0.01] * 99 + [0.02]), Song([0.01] * 100)]
    assert pace_ratio([Song([0.03] * 50, "broke", True)], calm) == pytest.approx(3)
    assert pace_ratio([Song([])], calm) is None, "without tokens there is no pace"


def named(folder: Path) -> list[str]:
    """The command lines of processes that name `folder`."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace"))
    return [line for line in found if str(folder) in line]


@pytest.mark.parametrize("kind", ["wrong", "leaks", "errors", "deaths"])
def test_a_fault_of_any_kind_is_one(kind: str) -> None:
    findings = Findings()
    assert not Row("storm", findings, 1.9, 8, "right").is_faulty(2.0)
    assert Row("storm", findings, 2.1, 8, "right").is_faulty(2.0)
    assert Row("storm", findings, 2.1, 8, "WRONG").is_faulty()
    findings.fault(kind, "what happened")
    assert Row("storm", findings, 1.0, 8, "right").is_faulty(2.0)
    assert findings.samples == [f"{kind}: what happened"]
