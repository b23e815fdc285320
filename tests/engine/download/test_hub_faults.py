"""Adapters from a hub that misbehaves: typed errors in time, nothing half-way kept as whole."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multilora.adapters import files as adapter_files
from multilora.adapters.naming.source import AdapterSource
from multilora.download import partial_file, transfer
from multilora.download.folder import adapter_folder
from multilora.download.transfer import DownloadLimits, Retries
from multilora.errors import ErrorCode, RequestError
from support.engine.downloads import WEIGHTS, names_in, use_hub
from support.fake.hub import HubServer

WEIGHTS_PATH = "org/sql/adapter_model.safetensors"
INFO_PATH = "api/models/org/sql"
SIZE = len(WEIGHTS)


def fetch(max_bytes: int = 1 << 30, seconds: float = 30) -> Path:
    return adapter_folder(AdapterSource("sql", "org/sql"), DownloadLimits(max_bytes, seconds))


def refusal(max_bytes: int = 1 << 30, seconds: float = 30) -> RequestError:
    with pytest.raises(RequestError) as caught:
        fetch(max_bytes, seconds)
    assert "adapter 'sql'" not in caught.value.message  # the caller names the adapter
    return caught.value


def check_whole(folder: Path) -> None:
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert "adapter_config.json" in names_in(folder)


@pytest.mark.parametrize(
    ("path", "fault", "code", "words"),
    [
        (INFO_PATH, "401", ErrorCode.NOT_FOUND, "HF_TOKEN"),
        (INFO_PATH, "403", ErrorCode.NOT_FOUND, "HF_TOKEN"),
        (INFO_PATH, "404", ErrorCode.NOT_FOUND, "404"),
        (INFO_PATH, "500", ErrorCode.UNAVAILABLE, "HTTP 500; try again"),
        (INFO_PATH, "429", ErrorCode.UNAVAILABLE, "HTTP 429; try again"),
        (INFO_PATH, "html", ErrorCode.UNAVAILABLE, "try again"),
        (WEIGHTS_PATH, "html", ErrorCode.UNAVAILABLE, "check HF_ENDPOINT"),
        ("org/sql/adapter_config.json", "html", ErrorCode.UNAVAILABLE, "check HF_ENDPOINT"),
        (WEIGHTS_PATH, "gated", ErrorCode.NOT_FOUND, "accept its terms"),
        (WEIGHTS_PATH, "401", ErrorCode.NOT_FOUND, "HF_TOKEN"),
        (WEIGHTS_PATH, "404", ErrorCode.NOT_FOUND, "a file is missing"),
        (WEIGHTS_PATH, "500", ErrorCode.UNAVAILABLE, "HTTP 500; try again"),
        (WEIGHTS_PATH, "slow", ErrorCode.UNAVAILABLE, "try again"),
        (WEIGHTS_PATH, "broken", ErrorCode.UNAVAILABLE, "try again"),
        (WEIGHTS_PATH, "reset", ErrorCode.UNAVAILABLE, "try again"),
        (WEIGHTS_PATH, "damaged", ErrorCode.UNAVAILABLE, "its hash is not the Hub's"),
        (WEIGHTS_PATH, "oversized", ErrorCode.UNAVAILABLE, "longer than the 1048576 bytes"),
    ],
)
def test_each_fault_has_its_error_and_passes(
    hub: HubServer, cache: Path, path: str, fault: str, code: ErrorCode, words: str
):
    hub.faults[path] = fault
    error = refusal()
    assert error.code is code, error.message
    assert words in error.message
    assert not list(cache.glob("*/snapshots/*/adapter_model.safetensors"))
    assert not list(cache.glob("*/refs/*"))
    hub.faults.clear()
    check_whole(fetch())


@pytest.mark.parametrize("fault", ["500", "slow", "broken", "reset"])
def test_one_interruption_is_not_even_noticed(hub: HubServer, fault: str):
    hub.fail(WEIGHTS_PATH, fault, times=1)
    check_whole(fetch())
    assert hub.sent[WEIGHTS_PATH] == SIZE  # the second attempt asked for the rest alone


def test_a_later_call_goes_on_where_the_earlier_one_stopped(
    hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Retries, "PAUSES", ())
    hub.faults[WEIGHTS_PATH] = "broken"
    refusal()
    (partial,) = cache.glob("*/blobs/*.incomplete")
    assert partial.read_bytes() == WEIGHTS[: SIZE // 2]
    hub.faults.clear()
    check_whole(fetch())
    assert hub.sent[WEIGHTS_PATH] == SIZE
    assert not partial.exists()


def test_a_hub_without_ranges_starts_over(hub: HubServer):
    hub.ranges = False
    hub.fail(WEIGHTS_PATH, "broken", times=1)
    check_whole(fetch())
    assert hub.sent[WEIGHTS_PATH] == SIZE // 2 + SIZE


@pytest.mark.parametrize("stale", [b"something else" * 10, bytes(SIZE), bytes(SIZE + 1)])
def test_a_stale_partial_never_counts(hub: HubServer, cache: Path, stale: bytes):
    blob = fetch() / "adapter_model.safetensors"
    blob = blob.resolve()
    blob.unlink()
    blob.with_name(f"{blob.name}.incomplete").write_bytes(stale)
    (cache / "models--org--sql/refs/main").unlink()
    check_whole(fetch())


def test_too_large_is_refused_before_a_byte_is_sent(hub: HubServer, cache: Path):
    error = refusal(max_bytes=SIZE)
    assert error.code is ErrorCode.INVALID_ARG and "--adapter-max-size" in error.message
    assert not hub.sent and not list(cache.rglob("*.incomplete"))
    check_whole(fetch(max_bytes=SIZE + 1000))


def test_a_hub_that_sends_for_ever_is_cut_off(hub: HubServer, cache: Path):
    hub.faults[WEIGHTS_PATH] = "endless"
    error = refusal()  # more than announced
    assert error.code is ErrorCode.UNAVAILABLE and "announced" in error.message
    hub.sizes = False  # nothing announced at all
    error = refusal(max_bytes=3 * SIZE)
    assert error.code is ErrorCode.INVALID_ARG and "--adapter-max-size" in error.message
    left = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert left < SIZE


@pytest.mark.parametrize(
    ("path", "fault"), [(WEIGHTS_PATH, "trickle"), (WEIGHTS_PATH, "slow"), (INFO_PATH, "slow")]
)
def test_the_time_limit_holds_whatever_the_hub_does(
    hub: HubServer, path: str, fault: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "multilora.download")
    hub.faults[path], hub.silence = fault, 30.0
    start = time.monotonic()
    error = refusal(seconds=0.7)
    assert time.monotonic() - start < 15
    assert error.code is ErrorCode.UNAVAILABLE
    assert "--adapter-download-timeout 0.7 s" in error.message


def test_progress_about_once_a_second(
    hub: HubServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transfer, "_REPORT_SECONDS", 0.25)
    caplog.set_level(logging.INFO, "multilora.download")
    hub.faults[WEIGHTS_PATH] = "trickle"
    refusal(seconds=1.1)
    assert 4 <= len(caplog.records) <= 6


def test_a_download_waits_for_the_lock_no_longer_than_it_may(hub: HubServer, cache: Path):
    held = partial_file.locked(
        cache / ".locks/models--org--sql/multilora.lock",
        transfer.Transfer("other", DownloadLimits()),
    )
    with held:
        assert "--adapter-download-timeout" in refusal(seconds=0.5).message
    check_whole(fetch())


def test_an_unreachable_hub_is_unavailable(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    use_hub(monkeypatch, "http://127.0.0.1:9", cache)
    error = refusal()
    assert error.code is ErrorCode.UNAVAILABLE and "HF_ENDPOINT" in error.message


def test_a_disk_that_fills_up_is_said_and_freed(hub: HubServer, cache: Path):
    blob = (fetch() / "adapter_model.safetensors").resolve()
    blob.unlink()
    full = blob.with_name(f"{blob.name}.incomplete")
    full.symlink_to("/dev/full")  # every write to it fails as on a full disk
    error = refusal()
    assert error.code is ErrorCode.UNAVAILABLE
    assert f"the disk of {blob.parent} is full" in error.message
    assert "HF_HUB_CACHE" in error.message
    assert not full.is_symlink(), "what arrived takes room on a full disk"
    check_whole(fetch())


def test_a_disk_without_room_is_said_before_a_byte_is_sent(
    hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = adapter_files.shutil.disk_usage
    monkeypatch.setattr(
        adapter_files.shutil, "disk_usage", lambda path: usage(path)._replace(free=1000)
    )
    error = refusal()
    assert error.code is ErrorCode.UNAVAILABLE
    assert "is full" in error.message and str(cache) in error.message
    assert not hub.sent


_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
from multilora.adapters.naming.source import AdapterSource
from multilora.errors import RequestError
from multilora.download.folder import adapter_folder
try:
    adapter_folder(AdapterSource("sql", "org/sql"))
except RequestError as error:
    print(error.code.value, error.message)
"""


def test_a_write_that_fails_is_the_disks_fault(hub: HubServer, cache: Path):
    """The operating system itself refuses to let the file grow."""
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED],
        env=os.environ
        | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(cache),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("UNAVAILABLE"), done.stderr
    assert "cannot be written (File too large)" in done.stdout and str(cache) in done.stdout
    assert not list(cache.rglob("*.incomplete")), "what arrived takes room on a full disk"
    check_whole(fetch())
