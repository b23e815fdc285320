"""The engine when something is wrong: requests, files, forward passes, settings."""

import logging
import threading
from pathlib import Path

import pytest

from multilora.adapters.checkpoint.adapter import Adapter, AdapterReader
from multilora.errors import ErrorCode, RequestError, StartupError
from multilora.forward.runner import InFlight
from multilora.request import FinishReason, Request, TokenOutput
from support.engine.requests import (
    MakeEngine,
    alone,
    assert_all_free,
    drain,
    page_bytes,
    raises_once,
    request,
    tokens,
)
from support.tiny.base import write_adapter


@pytest.mark.parametrize(
    ("bad", "code", "words"),
    [
        (Request("r", ()), ErrorCode.INVALID_ARG, "input_ids is empty"),
        (Request("r", (5,) * 256), ErrorCode.INVALID_ARG, "max_input_tokens is 255"),
        (Request("r", (5,) * 250), ErrorCode.INVALID_ARG, "max_tokens to at most 6"),
        (Request("r", (5, 128)), ErrorCode.INVALID_ARG, "input_ids holds 128"),
        (Request("r", (-1, 5)), ErrorCode.INVALID_ARG, "input_ids holds -1"),
        (Request("r", (5,), "nobody"), ErrorCode.NOT_FOUND, "'nobody' is not known"),
    ],
)
def test_bad_requests_are_refused_at_once(
    make_engine: MakeEngine, bad: Request, code: ErrorCode, words: str
):
    engine = make_engine()
    with pytest.raises(RequestError) as caught:
        engine.submit(bad)
    assert caught.value.code is code
    assert words in caught.value.message
    assert len(alone(engine, [request("fine", "a")])["fine"]) == 12


def test_too_many_requests_and_a_running_id(make_engine: MakeEngine):
    engine = make_engine(max_concurrent_requests=2)
    engine.submit(request("r1", max_tokens=200))
    with pytest.raises(RequestError, match="already running"):
        engine.submit(request("r1"))
    engine.submit(request("r2", max_tokens=200))
    with pytest.raises(RequestError) as caught:
        engine.submit(request("r3"))
    assert caught.value.code is ErrorCode.UNAVAILABLE
    drain(engine, 2)
    assert len(alone(engine, [request("r3")])["r3"]) == 12


def test_an_adapter_that_breaks_on_disk_fails_its_requests_only(
    make_engine: MakeEngine, folder: Path, tmp_path: Path
):
    paths = {name: write_adapter(tmp_path / name, seed=9, rank=16) for name in "xyz"}
    engine = make_engine(paths, adapter_memory=page_bytes(folder), adapter_host_memory=1)
    (paths["x"] / "adapter_model.safetensors").write_bytes(b"rubbish")
    for one in (request("x0", "x"), request("y0", "y"), request("base")):
        engine.submit(one)
    outputs = drain(engine, 3)
    if outputs["x0"][-1].error is None:  # x was still in the pool: the others pushed it out
        engine.submit(request("x1", "x"))
        outputs |= {"x0": drain(engine, 1)["x1"]}
    error = outputs["x0"][-1].error
    assert error is not None and "adapter_model.safetensors" in error.message
    assert len(tokens(outputs["y0"])) == len(tokens(outputs["base"])) == 12
    assert_all_free(engine)


def test_a_failed_forward_pass_ends_its_requests_and_the_engine_goes_on(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
):
    engine = make_engine()
    raises_once(monkeypatch, engine._parts.runner, "launch", RuntimeError("out of memory"))
    engine.submit(request("r1", "a"))
    error = drain(engine, 1)["r1"][-1].error
    assert error is not None and error.code is ErrorCode.INTERNAL and "out of memory" in str(error)
    assert len(alone(engine, [request("r2", "a")])["r2"]) == 12
    assert_all_free(engine)


def test_a_pass_that_fails_while_its_tokens_are_awaited_ends_its_requests_too(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
):
    """As on a GPU, which may not have begun a pass when its launch returns."""
    engine = make_engine()
    raises_once(monkeypatch, InFlight, "tokens", RuntimeError("an illegal memory access"))
    engine.submit(request("r1", "a"))
    error = drain(engine, 1)["r1"][-1].error
    assert error is not None and error.code is ErrorCode.INTERNAL and "illegal" in str(error)
    assert not engine._in_flight
    assert len(alone(engine, [request("r2", "a")])["r2"]) == 12
    assert_all_free(engine)


def test_close_ends_what_runs_and_refuses_more(make_engine: MakeEngine):
    engine = make_engine()
    engine.submit(request("r1", "a", max_tokens=200))
    engine.close()
    outputs: list[TokenOutput] = []
    while (batch := engine.outputs.get(timeout=10)) is not None:
        outputs += batch
    assert outputs[-1].error is not None or outputs[-1].finish_reason is FinishReason.LENGTH
    with pytest.raises(RequestError, match="shutting down; try again later"):
        engine.submit(request("r2"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kv_cache_memory": 1024}, ["kv_cache_memory", "--max-total-tokens"]),
        ({"adapter_memory": 1024}, ["adapter_memory", "one page"]),
        ({"max_input_tokens": 256, "max_total_tokens": 256}, ["below max_total_tokens"]),
        ({"max_lora_rank": 32}, ["adapter 'e'", "rank"]),
    ],
)
def test_startup_errors_are_one_clear_line(
    make_engine: MakeEngine, settings: dict[str, int], words: list[str]
):
    with pytest.raises(StartupError) as caught:
        make_engine(**settings)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_several_refused_adapters_the_first_that_was_named_is_told(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
):
    """Both "e" and "f" have too high a rank, and "e" is looked at when "f" has been refused."""
    real, refused = AdapterReader.read, threading.Event()

    def read(reader: AdapterReader, folder: Path, adapter_id: str) -> Adapter:
        assert adapter_id != "e" or refused.wait(30)
        try:
            return real(reader, folder, adapter_id)
        finally:
            if adapter_id == "f":
                threading.Timer(0.2, refused.set).start()  # the refusal has long arrived by then

    monkeypatch.setattr(AdapterReader, "read", read)
    with pytest.raises(StartupError, match="adapter 'e'"):
        make_engine(max_lora_rank=32)


def test_an_adapter_that_never_fits_is_refused(make_engine: MakeEngine, folder: Path):
    with pytest.raises(StartupError, match="--adapter-memory"):
        make_engine(adapter_memory=3 * page_bytes(folder))


def test_progress_counts_only_the_adapters_that_are_loaded(
    make_engine: MakeEngine, folder: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "multilora.startup.build")
    with pytest.raises(StartupError, match=r"^adapter 'gone': there is no folder"):
        make_engine({"a": folder / "a", "gone": folder / "nowhere"})
    said = [line for line in caplog.messages if line.startswith("loaded ")]
    assert said == ["loaded 1 of 2 adapters"]
