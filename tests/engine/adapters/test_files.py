"""Files are read at one moment: never blocked, never half a copy."""

import os
import time
from pathlib import Path

import pytest

from multilora.adapters import files as adapter_files
from multilora.errors import ErrorCode, RequestError
from support.engine.files import CONFIG, WEIGHTS, read, settle, unprivileged, write

SLEEP = time.sleep


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


def test_a_fifo_put_in_place_of_a_file_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and opening."""
    write(tmp_path, "one")
    monkeypatch.setattr(adapter_files, "_seconds_until_quiet", lambda _: swap() or 0.0)

    def swap() -> None:
        (tmp_path / WEIGHTS).unlink(missing_ok=True)
        os.mkfifo(tmp_path / WEIGHTS)

    with pytest.raises(RequestError, match="not a regular file"):
        read(tmp_path)


def test_a_file_without_leave_to_read_it(tmp_path: Path) -> None:
    write(tmp_path, "one")
    (tmp_path / WEIGHTS).chmod(0)
    with unprivileged(tmp_path), pytest.raises(RequestError) as caught:
        read(tmp_path)
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert f"{WEIGHTS} cannot be read (Permission denied)" in caught.value.message


def test_files_of_a_folder_that_may_not_be_listed(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    write(folder, "one")
    folder.chmod(0o711)
    with unprivileged(tmp_path):
        assert adapter_files.read_settled(folder, adapter_files.FILES).keys() == {CONFIG, WEIGHTS}


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
