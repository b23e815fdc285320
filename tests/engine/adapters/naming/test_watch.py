"""Changes of the adapters directory: each is told once, and only when the folder is complete."""

import logging
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from multilora.adapters.naming import watch as watching
from multilora.adapters.naming.folders import AdapterFolders, Signature
from multilora.adapters.naming.watch import AdapterWatch, FolderChanges

Reports = queue.SimpleQueue[FolderChanges]
WATCHED = 0.02  # seconds between two looks


def make(folder: Path, weights: str = "w") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(weights)


class Scripted(AdapterFolders):
    """The real folders, but with a thing to do at each scan."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.scans = 0
        self.at_scan: Callable[[int], None] = lambda number: None
        self.after_scan: Callable[[], object] = lambda: None

    def scan(self, pause: Callable[[], None] = lambda: None) -> dict[str, Signature]:
        self.scans += 1
        self.at_scan(self.scans)
        found = super().scan(pause)
        self.after_scan()
        return found


@pytest.fixture(name="folders")
def adapters_dir(tmp_path: Path) -> Scripted:
    make(tmp_path / "adapters/old")
    return Scripted(tmp_path / "adapters")


@pytest.fixture(name="reports")
def reports_queue() -> Reports:
    return queue.SimpleQueue()


@pytest.fixture(name="watch")
def started_watch(folders: Scripted, reports: Reports) -> Iterator[AdapterWatch]:
    watch = AdapterWatch(folders, reports.put, WATCHED)
    watch.start()
    yield watch
    watch.close()


def wait_for_scans(folders: Scripted, count: int) -> None:
    last = folders.scans + count
    deadline = time.monotonic() + 20
    while folders.scans < last:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.usefixtures("watch")
def test_added_replaced_and_removed_are_told_once(folders: Scripted, reports: Reports) -> None:
    root = Path(folders.root)
    wait_for_scans(folders, 4)
    assert reports.empty() and folders.known == ("old",)  # what was there is no news
    for change, expected in (
        (lambda: make(root / "team/new"), FolderChanges(("team/new",), (), ())),
        (lambda: make(root / "old", "v2"), FolderChanges((), ("old",), ())),
        (lambda: shutil.rmtree(root / "old"), FolderChanges((), (), ("old",))),
        (lambda: make(root / "old"), FolderChanges(("old",), (), ())),
    ):
        change()
        assert reports.get(timeout=20) == expected
        wait_for_scans(folders, 4)
        assert reports.empty()
    assert folders.known == ("old", "team/new")


def test_a_long_scan_is_paced_and_ends_with_the_watch(
    folders: Scripted,
    reports: Reports,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    finished: list[int] = []
    folders.after_scan = lambda: finished.append(folders.scans)
    monkeypatch.setattr(watching, "_BURST_SECONDS", 0.0)  # a pause after each folder
    monkeypatch.setattr(watching, "_SHARE", 1e-9)  # that never ends
    make(Path(folders.root) / "new")
    before = folders.scans
    watch = AdapterWatch(folders, reports.put, WATCHED)
    watch.start()
    deadline = time.monotonic() + 20
    while folders.scans < before + 2:  # the first is not paced: the server does not serve yet
        assert time.monotonic() < deadline
        time.sleep(WATCHED)
    time.sleep(5 * WATCHED)
    assert folders.scans == before + 2, "the scan does not pause"
    watch.close()
    assert not watch._thread.is_alive()
    assert finished == [before + 1] and not caplog.records


def test_a_pause_is_for_the_work_since_the_latest(
    folders: Scripted, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(watching, "time", SimpleNamespace(thread_time=lambda: now))
    watch = AdapterWatch(folders, reports.put, WATCHED)
    pauses: list[float] = []
    monkeypatch.setattr(watch._closed, "wait", pauses.append)
    for spent in (0.001, 0.001, 0.004, 0.002, 0.002):
        now += spent
        watch._pace()
    assert pauses == pytest.approx([0.3, 0.2]), "2 % of a core"


def test_what_arrives_during_a_scan_is_not_told_as_removed(
    folders: Scripted, reports: Reports
) -> None:
    """It is in memory at once, as a request may ask for it; the scan has seen its place before."""
    loaded: list[str] = []

    def arrive() -> None:
        if folders.scans == 2:
            make(Path(folders.root) / "new")
            loaded.append("new")

    folders.after_scan = arrive
    watch = AdapterWatch(folders, reports.put, WATCHED, in_memory=lambda: loaded)
    watch.start()
    assert reports.get(timeout=20) == FolderChanges(("new",), (), ())
    watch.close()


def test_several_changes_in_one_report(folders: Scripted, reports: Reports) -> None:
    root = Path(folders.root)
    make(root / "gone")
    watch = AdapterWatch(folders, reports.put, WATCHED)
    make(root / "b")
    make(root / "a")
    make(root / "old", "v2")
    shutil.rmtree(root / "gone")
    watch.start()
    assert reports.get(timeout=20) == FolderChanges(("a", "b"), ("old",), ("gone",))
    watch.close()


def test_a_folder_is_told_when_its_files_stand_still(
    folders: Scripted, reports: Reports, watch: AdapterWatch
) -> None:
    """Weights grow at each of ten scans: as a slow copy does."""
    weights = Path(folders.root) / "slow/adapter_model.safetensors"
    make(weights.parent, "")
    first = folders.scans + 1

    def grow(number: int) -> None:
        if number < first + 10:
            with weights.open("a") as file:
                file.write("more")

    folders.at_scan = grow
    assert reports.get(timeout=20) == FolderChanges(("slow",), (), ())
    assert folders.scans >= first + 10


def test_what_comes_and_goes_between_two_scans_is_not_told(
    folders: Scripted, reports: Reports, watch: AdapterWatch
) -> None:
    def flicker(number: int) -> None:
        if number % 2:
            make(Path(folders.root) / "flicker")
        else:
            shutil.rmtree(Path(folders.root) / "flicker", ignore_errors=True)

    folders.at_scan = flicker
    wait_for_scans(folders, 10)
    assert reports.empty()


def test_failures_are_logged_once_and_take_nothing_away(
    folders: Scripted,
    reports: Reports,
    watch: AdapterWatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The whole directory goes away (a network disk) and comes back."""
    root = Path(folders.root)
    caplog.set_level(logging.ERROR)
    root.rename(root.with_name("away"))
    wait_for_scans(folders, 5)
    assert len(caplog.records) == 1
    assert f"watching the adapters directory {root}" in caplog.text
    assert folders.known == ("old",)
    root.with_name("away").rename(root)
    wait_for_scans(folders, 4)
    assert reports.empty() and len(caplog.records) == 1
    root.rename(root.with_name("away"))
    wait_for_scans(folders, 3)
    assert len(caplog.records) == 2


def test_a_report_that_fails_does_not_end_the_watch(
    folders: Scripted, reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    def report(changes: FolderChanges) -> None:
        reports.put(changes)
        raise RuntimeError("cannot follow")

    watch = AdapterWatch(folders, report, WATCHED)
    watch.start()
    for name in ("a", "b"):
        make(Path(folders.root) / name)
        assert reports.get(timeout=20).added == (name,)
    watch.close()
    assert "cannot follow" in caplog.text


def test_a_large_directory_is_looked_at_less_often(folders: Scripted, reports: Reports) -> None:
    """At most 2 % of a core: after a scan of 20 ms there is a second of rest."""

    def work(number: int) -> None:
        start = time.thread_time()
        while time.thread_time() - start < 0.02:
            pass

    folders.at_scan = work
    watch = AdapterWatch(folders, reports.put, WATCHED)
    watch.start()
    time.sleep(1)
    watch.close()
    assert folders.scans <= 3


def test_close_does_not_wait_for_the_next_look(folders: Scripted, reports: Reports) -> None:
    watch = AdapterWatch(folders, reports.put, seconds=60)
    watch.start()
    start = time.monotonic()
    watch.close()
    watch.close()
    assert time.monotonic() - start < 1
    assert not any(thread.name == "adapter-watch" for thread in threading.enumerate())
    AdapterWatch(folders, reports.put).close()  # never started
