"""The command `multilora adapters`, run as a process, against a real gRPC server."""

import json
import os
import pty
import struct
import subprocess
import sys
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Any

import pytest

from multilora_client import AdapterInfo, AdapterMemory
from multilora_client.adapters.table import adapters_table, age_text, cut, size_text
from support.fake.adapters import ENTRIES, MEMORY, FakeAdapters, entry

CLIENT = Path(__file__).parents[2] / "client"
NOW = 1_700_000_003.5
TABLE = """\
ID        STATE   TIER    RANK     SIZE  PINNED  RUN  WAIT  REQS  LAST USED  SOURCE
alpha     ready   device   128  1.2 MiB  no        0     0     7  3 s ago    /adapters/alpha
zeta      ready   device    16  1.2 MiB  yes       2     1     7  3 s ago    /adapters/zeta
org/name  ready   host      16  1.2 MiB  no        0     0     7  3 s ago    org/name@v2
bad       failed  disk       -        -  no        0     0     7  never      /adapters/bad
  error: q_proj holds NaN; train it

4 adapters; device: 3 of 64 pages used, 96.0 KiB each; host memory: 2.0 MiB of 4.0 GiB used"""


@pytest.fixture
def server() -> Iterator[FakeAdapters]:
    server = FakeAdapters()
    yield server
    server.close()


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "multilora_client.cli", "adapters", *args]


def environ(server: FakeAdapters) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CLIENT), "MULTILORA_URL": server.url}


def run(server: FakeAdapters, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args), env=environ(server), capture_output=True, text=True, timeout=60
    )


def stdout(server: FakeAdapters, *args: str) -> str:
    """What a command prints that must succeed."""
    done = run(server, *args)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def table(*entries: dict[str, Any], width: int | None) -> list[str]:
    infos = [AdapterInfo.from_json(each) for each in entries]
    return adapters_table(infos, AdapterMemory(**MEMORY), NOW, width).splitlines()


def test_the_table_is_aligned_and_sorted_by_tier_then_id() -> None:
    assert table(*ENTRIES, width=None) == TABLE.splitlines()
    assert table(*ENTRIES, width=100) == TABLE.splitlines(), "it fits 100 columns"


def test_what_is_long_is_cut_in_the_middle_only_on_a_terminal() -> None:
    long_id = "organisation/a-very-long-name-of-an-adapter-for-support-tickets-v17"
    entries = [entry(long_id), entry("b")]
    assert any(long_id in line for line in table(*entries, width=None))
    rows = [line for line in table(*entries, width=100) if "device  " in line]
    assert all(len(row) <= 100 for row in rows)
    start, _, end = rows[1].split()[0].partition("…")
    assert long_id.startswith(start) and long_id.endswith(end) and start and end


def test_a_table_of_nothing() -> None:
    header, empty, footer = table(width=80)
    assert header.startswith("ID") and not empty
    assert footer.startswith("0 adapters; device: 3 of 64 pages")


def test_an_adapter_cannot_drive_the_terminal() -> None:
    text = "\n".join(table(entry("a\x1b[2J", error="b\x07"), width=None))
    assert r"a\x1b[2J" in text and r"b\x07" in text
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (5 * 2**29, "2.5 GiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (-9, "0 s ago"),
        (3, "3 s ago"),
        (119, "1 min ago"),
        (7300, "2 h ago"),
        (86400 * 30, "30 d ago"),
    ],
)
def test_ages(age: float, text: str) -> None:
    assert age_text(NOW - age, NOW) == text


def test_cut() -> None:
    assert [cut("abcdefgh", width) for width in (8, 7, 6)] == ["abcdefgh", "abc…fgh", "abc…gh"]


def test_list(server: FakeAdapters) -> None:
    lines = stdout(server, "list").splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["alpha", "zeta", "org/name"]
    assert lines[-1] == TABLE.splitlines()[-1]


@pytest.mark.parametrize(
    ("pattern", "ids"),
    [("*a", ["zeta", "alpha"]), ("org/*", ["org/name"]), ("et", ["zeta"]), ("x", [])],
)
def test_list_filter(server: FakeAdapters, pattern: str, ids: list[str]) -> None:
    shown = json.loads(stdout(server, "list", "--json", "--filter", pattern))
    assert [each["id"] for each in shown["adapters"]] == ids


def test_json_is_the_servers_answer(server: FakeAdapters) -> None:
    listed = json.loads(stdout(server, "list", "--json"))
    assert listed == {"adapters": ENTRIES, "memory": MEMORY, "next": "", "colour": "blue"}
    assert json.loads(stdout(server, "info", "sql", "--json"))["colour"] == "blue"


def test_a_terminal_gets_lines_that_fit(server: FakeAdapters) -> None:
    user, terminal = pty.openpty()
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", 24, 88, 0, 0))
    env = {name: value for name, value in environ(server).items() if name != "COLUMNS"}
    done = subprocess.run(
        command("list", "--filter", "org/"),
        env=env,
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(terminal)
    output = os.read(user, 65536).decode()
    os.close(user)
    assert (done.returncode, done.stderr) == (0, b"")
    assert all(len(line) <= 88 for line in output.splitlines()[:2])


def test_info(server: FakeAdapters) -> None:
    lines = stdout(server, "info", "sql").splitlines()
    assert lines[:3] == ["id         sql", "state      ready", "tier       device"]
    assert "modules    q_proj, v_proj" in lines


@pytest.mark.parametrize(
    ("args", "output", "sent"),
    [
        (
            ["load", "sql", "org/name", "--revision", "v2", "--timeout", "9"],
            "sql: loaded (tier device, rank 16, 1.2 MiB)",
            {"source": ["org/name"], "revision": ["v2"], "timeout": [9.0]},
        ),
        (["load", "sql"], "sql: loaded (tier device, rank 16, 1.2 MiB)", {}),
        (["unload", "sql"], "sql: unloaded, freed 2 device pages and 1.2 MiB of host memory", {}),
        (
            ["unload", "sql", "--cancel"],
            "sql: unloaded, freed 2 device pages and 1.2 MiB of host memory",
            {"cancel": [True]},
        ),
        (["pin", "sql"], "sql: pinned (tier device, rank 16, 1.2 MiB)", {}),
        (["unpin", "sql"], "sql: no longer pinned (tier device, rank 16, 1.2 MiB)", {}),
    ],
)
def test_changes(
    server: FakeAdapters, args: list[str], output: str, sent: dict[str, list[object]]
) -> None:
    assert stdout(server, *args) == f"{output}\n"
    ((model, _, inputs),) = server.received
    assert model == "adapters"
    assert inputs == {"action": [args[0]], "adapter_id": ["sql"], **sent}


def test_merge(server: FakeAdapters) -> None:
    args = (
        "--adapter-token",
        "hf_x",
        "sql=0.5",
        "org/a=b=2",
        "json",
        "--strategy",
        "ties",
        "--density",
        "0.5",
    )
    assert "merged (tier device" in stdout(server, "merge", *args)
    ((_, _, inputs),) = server.received
    assert json.loads(str(inputs["merge"][0])) == {
        "ids": ["sql", "org/a=b", "json"], "weights": [0.5, 2.0, 1.0],
        "merge_strategy": "ties", "density": 0.5,
    }  # fmt: skip
    assert inputs["adapter_token"] == ["hf_x"]


@pytest.mark.parametrize(("part", "advice"), [("a=x", "write a=0.5"), ("sql", "add its weights")])
def test_parts_that_cannot_be_merged(server: FakeAdapters, part: str, advice: str) -> None:
    done = run(server, "merge", "sql=1", part)
    assert done.returncode == 2 and advice in done.stderr


def test_a_failed_action_is_one_line_and_exit_code_1(server: FakeAdapters) -> None:
    done = run(server, "load", "NOT_FOUND")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "multilora: no luck: NOT_FOUND\n"


@pytest.mark.parametrize("args", [["fly"], [], ["load"], ["list", "x"], ["unload", "a", "b"]])
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    server: FakeAdapters, args: list[str]
) -> None:
    done = run(server, *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("multilora") and done.stderr.count("\n") == 1
    assert not server.received
