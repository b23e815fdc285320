"""Files are read at one moment: never a mixture, never blocked, never half a copy."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from multilora import adapter_files
from multilora.adapter_checkpoint import Adapter, read_adapter
from multilora.adapter_files import read_settled
from multilora.base_config import BaseConfig
from multilora.errors import ErrorCode, RequestError
from tiny_adapters import make_adapter
from tiny_families import make_model

SLEEP = time.sleep
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write(folder: Path, version: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_text(version)


def settle() -> None:
    time.sleep(0.06)


def read(folder: Path) -> dict[str, str]:
    contents = read_settled(folder, (CONFIG, WEIGHTS))
    return {name: content.decode() for name, content in contents.items()}


@contextmanager
def running(work) -> Iterator[None]:
    """`work()` again and again beside the test."""
    done = threading.Event()

    def loop() -> None:
        while not done.is_set():
            work()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture(name="waits")
def recorded_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the reader has slept, each time."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        if seconds:
            waits.append(seconds)
            SLEEP(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    return waits


def test_files_that_stand_still_are_read_at_once(tmp_path: Path, waits: list[float]) -> None:
    write(tmp_path, "one")
    settle()
    waits.clear()
    assert read(tmp_path) == {CONFIG: "one", WEIGHTS: "one"}
    assert not waits


def test_files_just_written_are_read_a_moment_later(tmp_path: Path, waits: list[float]) -> None:
    write(tmp_path, "one")
    assert read(tmp_path) == {CONFIG: "one", WEIGHTS: "one"}
    assert len(waits) == 1 and waits[0] <= 0.05


def test_missing_files_are_left_out(tmp_path: Path) -> None:
    assert read(tmp_path) == read(tmp_path / "nowhere") == {}
    (tmp_path / CONFIG).write_text("one")
    assert read(tmp_path) == {CONFIG: "one"}


def test_a_copy_in_progress_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "old")
    settle()
    (tmp_path / CONFIG).write_text("new")

    def sleep(seconds: float) -> None:
        if seconds and (tmp_path / WEIGHTS).read_text() == "old":
            (tmp_path / WEIGHTS).write_text("new")
        SLEEP(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    assert read(tmp_path) == {CONFIG: "new", WEIGHTS: "new"}


def test_a_folder_that_is_never_still_is_busy(tmp_path: Path) -> None:
    write(tmp_path, "one")
    with running(lambda: write(tmp_path, "two")), pytest.raises(RequestError) as caught:
        read(tmp_path)
    assert caught.value.code is ErrorCode.UNAVAILABLE
    assert f"folder {tmp_path} is being written; try again" in caught.value.message


@pytest.mark.parametrize("restored", [False, True], ids=["mtime", "mtime restored"])
def test_a_write_during_the_reading_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored: bool
) -> None:
    """The weights change, at the same size, between the reading of the two files."""
    write(tmp_path, "old")
    settle()
    really_read = adapter_files._read

    def and_then_write(path: Path, size: int) -> bytes | None:
        content = really_read(path, size)
        if path.name == CONFIG and content == b"old":
            status = os.stat(tmp_path / WEIGHTS)
            write(tmp_path, "new")
            if restored:
                os.utime(tmp_path / WEIGHTS, ns=(status.st_atime_ns, status.st_mtime_ns))
        return content

    monkeypatch.setattr(adapter_files, "_read", and_then_write)
    assert read(tmp_path) == {CONFIG: "new", WEIGHTS: "new"}


@pytest.mark.parametrize("replace", ["in place", "renamed files", "swapped symlink"])
def test_never_a_mixture(tmp_path: Path, replace: str) -> None:
    """A thread goes on replacing the folder, in the ways people do, while it is read."""
    folder, versions = tmp_path / "adapter", iter(range(10**6))
    for name in ("a", "b"):
        write(tmp_path / name, name)
    folder.symlink_to("a")
    if replace != "swapped symlink":
        folder.unlink()
        write(folder, "first")

    stalled: set[str] = set()  # this machine may be busy: versions written with a long pause

    def change() -> None:
        version, start = str(next(versions)), time.monotonic()
        if replace == "swapped symlink":
            (tmp_path / "link").symlink_to("ab"[int(version) % 2])
            os.rename(tmp_path / "link", folder)
            return time.sleep(0.001)
        write(tmp_path / "new", version)
        for name in (CONFIG, WEIGHTS):
            if replace == "in place":
                (folder / name).write_text(version)
            else:
                os.rename(tmp_path / "new" / name, folder / name)
            time.sleep(0.01)
        if time.monotonic() - start > 0.04:
            stalled.add(version)
        time.sleep(0.08)

    outcomes: Counter[str] = Counter()
    mixtures: list[set[str]] = []
    with running(change):
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            try:
                seen = set(read(folder).values())
            except RequestError as error:
                assert error.code is ErrorCode.UNAVAILABLE
                outcomes["busy"] += 1
            else:
                outcomes["read"] += 1
                if len(seen) > 1:
                    mixtures.append(seen)
    assert all(mixture & stalled for mixture in mixtures), mixtures
    assert outcomes["read"] > 3, outcomes


def test_a_fifo_put_in_place_of_a_file_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and opening."""
    write(tmp_path, "one")
    monkeypatch.setattr(adapter_files, "_unrest", lambda _: swap() or 0.0)

    def swap() -> None:
        (tmp_path / WEIGHTS).unlink(missing_ok=True)
        os.mkfifo(tmp_path / WEIGHTS)

    with pytest.raises(RequestError, match="not a regular file"):
        read(tmp_path)


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user who is not root, whom no file mode would stop."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


def test_a_file_without_leave_to_read_it(tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents[:2]):  # pytest's own folders are private
        parent.chmod(0o755)
    write(tmp_path, "one")
    (tmp_path / WEIGHTS).chmod(0)
    with unprivileged(), pytest.raises(RequestError) as caught:
        read(tmp_path)
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert f"{WEIGHTS} cannot be read (Permission denied)" in caught.value.message


def test_other_failures_of_the_disk_may_pass(tmp_path: Path) -> None:
    (tmp_path / CONFIG).symlink_to(CONFIG)  # a loop
    with pytest.raises(RequestError) as caught:
        read(tmp_path)
    assert caught.value.code is ErrorCode.UNAVAILABLE
    assert f"{CONFIG} cannot be read (Too many levels" in caught.value.message


def test_more_than_the_memory_holds(tmp_path: Path) -> None:
    write(tmp_path, "one")
    os.truncate(tmp_path / WEIGHTS, 1 << 43)  # a hole
    with pytest.raises(RequestError, match="more than there is memory for"):
        read(tmp_path)


def test_an_adapter_is_whole_while_its_folder_is_rewritten(tmp_path: Path) -> None:
    """Two versions of different ranks: each digest has its own rank, and no read is refused."""
    make_model("llama").config.save_pretrained(tmp_path)
    base = BaseConfig.from_folder(tmp_path)
    for rank in (4, 8):
        make_adapter(tmp_path / f"r{rank}", r=rank)
    folder = tmp_path / "adapter"
    folder.mkdir()
    ranks = iter([4, 8] * 10_000)

    def change() -> None:
        version = tmp_path / f"r{next(ranks)}"
        for name in (CONFIG, WEIGHTS):
            (folder / name).write_bytes((version / name).read_bytes())
        time.sleep(0.15)

    def load(where: Path) -> Adapter:
        return read_adapter(where, "mine", base, torch.float32, max_rank=16)

    change()
    want = {load(tmp_path / f"r{rank}").digest: rank for rank in (4, 8)}
    seen: Counter[int] = Counter()
    with running(change):
        deadline = time.monotonic() + 60
        while len(seen) < 2 or seen.total() < 12:
            assert time.monotonic() < deadline
            adapter = load(folder)
            assert want[adapter.digest] == adapter.rank
            seen[adapter.rank] += 1
