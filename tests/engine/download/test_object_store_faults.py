"""Object stores that misbehave: typed errors in time, nothing half-way kept as whole."""

from pathlib import Path

import pytest

from multilora.download.transfer import Retries
from multilora.errors import ErrorCode
from support.engine.downloads import use_hub, write_adapter
from support.engine.object_stores import SIZE, WEIGHTS_PATH, check_whole, fetch, refusal, url
from support.fake.hub import HubServer


@pytest.fixture(autouse=True)
def no_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9", cache)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("404", ErrorCode.NOT_FOUND),
        ("401", ErrorCode.NOT_FOUND),
        ("403", ErrorCode.NOT_FOUND),
        ("500", ErrorCode.UNAVAILABLE),
        ("broken", ErrorCode.UNAVAILABLE),
        ("reset", ErrorCode.UNAVAILABLE),
        ("oversized", ErrorCode.UNAVAILABLE),
        ("endless", ErrorCode.UNAVAILABLE),
    ],
)
def test_each_fault_has_its_error_and_passes(
    web: HubServer, cache: Path, fault: str, code: ErrorCode
):
    web.faults[WEIGHTS_PATH] = fault
    error = refusal(url(web), max_bytes=3 * SIZE)
    assert error.code is code, error.message
    assert not list(cache.glob("object-stores/*/versions/*"))
    assert not list(cache.glob("object-stores/*/latest"))
    web.faults.clear()
    check_whole(fetch(url(web)))


def test_a_store_that_sends_for_ever_is_cut_off(web: HubServer, cache: Path):
    web.faults[WEIGHTS_PATH], web.sizes = "endless", False
    error = refusal(url(web), max_bytes=3 * SIZE)
    assert error.code is ErrorCode.INVALID_ARG and "--adapter-max-size" in error.message


def test_the_time_limit_holds(web: HubServer):
    web.faults[WEIGHTS_PATH] = "trickle"
    error = refusal(url(web), seconds=1)
    assert error.code is ErrorCode.UNAVAILABLE
    assert "--adapter-download-timeout 1 s" in error.message


@pytest.mark.parametrize("ranges", [True, False])
def test_a_later_call_goes_on_where_the_earlier_one_stopped(
    web: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
):
    monkeypatch.setattr(Retries, "PAUSES", ())
    web.faults[WEIGHTS_PATH] = "broken"
    refusal(url(web))
    (partial_copy,) = cache.glob("object-stores/*/incomplete/*/adapter_model.safetensors")
    there = partial_copy.stat().st_size
    assert 0 < there <= SIZE // 2
    web.faults.clear()
    web.sent.clear()
    web.ranges = ranges
    check_whole(fetch(url(web)))
    if ranges:
        assert web.sent[WEIGHTS_PATH] == SIZE - there


def test_a_store_that_is_gone_leaves_its_copy(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_adapter(tmp_path / "hub/org/sql")
    with HubServer(tmp_path / "hub") as web:
        location = url(web)
        folder = fetch(location)
    assert fetch(location) == folder
    assert "serving the copy in the cache" in caplog.text
    error = refusal(location.replace("/main", "/other"))
    assert error.code is ErrorCode.UNAVAILABLE


def test_users_and_passwords_are_not_shown(web: HubServer):
    web.faults[WEIGHTS_PATH] = "500"
    error = refusal(url(web).replace("//", "//user:secret@"))
    assert error.code is ErrorCode.UNAVAILABLE and "secret" not in error.message
