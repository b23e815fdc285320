"""The command `multilora-gateway`, where only the client's requirements are installed."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_what_is_missing_and_where_it_comes_from() -> None:
    """-S leaves out all that is installed."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "multilora_gateway"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "client")},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: the gateway needs ") and done.stderr.count("\n") == 1
    assert done.stderr.endswith("pip install '.[gateway]'\n")


def test_both_ways_to_start_it_are_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "gateway" in project["optional-dependencies"]
    installed = project["scripts"]["multilora-gateway"]
    command = EntryPoint("multilora-gateway", installed, "console_scripts").load()
    assert command.__module__ == "multilora_gateway.__main__"
