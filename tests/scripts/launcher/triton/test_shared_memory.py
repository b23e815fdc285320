"""Files in /dev/shm: whose they are, who may read them, and when they are removed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.triton import shared_memory

FOLDER = Path("/dev/shm")
OTHER = f"""
import sys
sys.path[:0] = {sys.path!r}
from launcher.triton import shared_memory
print(shared_memory.new_prefix())
"""


@pytest.fixture
def file() -> Iterator[Path]:
    """Of a server of this process."""
    path = FOLDER / f"{shared_memory.new_prefix()}region"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


def test_a_server_removes_its_own(file: Path) -> None:
    prefix = file.name.removesuffix("region")
    shared_memory.make_private(prefix)
    assert file.stat().st_mode & 0o777 == 0o600
    shared_memory.remove(shared_memory.new_prefix())  # another server's
    assert file.exists()
    shared_memory.remove(prefix)
    assert not file.exists()


def test_leftovers_are_those_of_processes_that_ended(file: Path) -> None:
    done = subprocess.run([sys.executable, "-c", OTHER], capture_output=True, text=True, check=True)
    left = FOLDER / f"{done.stdout.strip()}region"
    namespace = left.name.split("-")[1]
    foreign = FOLDER / left.name.replace(namespace, f"{namespace}0")  # of another container
    strange = FOLDER / f"multilora-{namespace}-"
    kept = [file, foreign]
    if os.geteuid() == 0:
        theirs = FOLDER / f"{left.name}2"
        theirs.touch()
        os.chown(theirs, 65534, -1)
        kept.append(theirs)
    try:
        for path in (left, foreign, strange):
            path.touch()
        shared_memory.remove_leftovers()
        assert not left.exists() and all(path.exists() for path in kept)
    finally:
        for path in (left, strange, *kept):
            path.unlink(missing_ok=True)
