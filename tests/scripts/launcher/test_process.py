"""A child of the launcher: its stack, its group, and its end with its launcher."""

import resource
import subprocess
import sys

import pytest

from launcher.process import end_child, stack_bytes, stack_warning, start_child
from support.processes import assert_end, is_alive

LIMITS = "import resource; print(resource.getrlimit(resource.RLIMIT_STACK)[0])"
LAUNCHER = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from launcher.process import start_child
child = start_child(["sh", "-c", "sleep 60 & echo $$ $!; trap '' TERM; wait"], {{}})
print(child.stdout.readline(), flush=True)
time.sleep(60)
"""


def test_its_threads_have_a_large_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stack_bytes() == 256 << 20 and stack_warning() == []
    child = start_child([sys.executable, "-c", LIMITS], {})
    assert child.stdout and child.stdout.readline().strip() == str(256 << 20)
    end_child(child)
    limits = (1 << 20, 100 << 20)
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    assert stack_bytes() == 100 << 20
    assert "stacks of 102400 KiB" in stack_warning()[0]


def test_its_group_ends_with_it() -> None:
    child = start_child(["sh", "-c", 'sleep 60 & echo "$! $WORD"'], {"WORD": "hello"})
    assert child.stdout
    pid, word = child.stdout.readline().split()
    child.wait()
    assert word == "hello" and is_alive(int(pid))
    end_child(child)
    assert_end(int(pid))
    end_child(child)


def test_its_group_ends_with_its_launcher() -> None:
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout
        pids = [int(pid) for pid in launcher.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_alive, pids))
        launcher.kill()
    assert_end(*pids)


INIT = f"""
import glob, os, signal, subprocess, sys, time
sys.path[:0] = {sys.path!r}
from launcher.process import leave_init_behind
leave_init_behind()
assert os.getpid() != 1
subprocess.run(["sh", "-c", "sleep 0.05 & sleep 0.05 &"])  # orphans
assert subprocess.Popen(["sh", "-c", "sleep 0.1; exit 7"]).wait() == 7
caught = []
signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
os.kill(1, signal.SIGTERM)
deadline = time.monotonic() + 10
states = []
while (len(states) != 2 or not caught) and time.monotonic() < deadline:
    time.sleep(0.02)
    stats = [open(path).read() for path in glob.glob("/proc/[0-9]*/stat")]
    states = [stat.rpartition(")")[2].split()[0] for stat in stats]
print(len(states), len(caught))
sys.exit(5)
"""


def test_the_first_process_of_a_container_buries_orphans() -> None:
    apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("a namespace of processes is not allowed here")
    done = subprocess.run(
        [*apart, sys.executable, "-c", INIT], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["2", "1"], done.stderr
    assert done.returncode == 5
