"""The life of adapters under pressure: what must not stall, leak, mix or hit others."""

import dataclasses
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from multilora.adapters.admin.command import AdminCommand
from multilora.adapters.merging.recipe import MergeRecipe
from multilora.engine import Engine
from multilora.errors import ErrorCode, RequestError
from multilora.request import AdapterSet, FinishReason, TokenOutput
from support.engine.requests import (
    MakeEngine,
    alone,
    ask,
    assert_all_free,
    drain,
    page_bytes,
    refusal,
    request,
    tokens,
)
from support.engine.workshop import MakeShop
from support.tiny.base import write_adapter


def slow_down(engine: Engine, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    runner = engine._parts.runner
    real = runner.launch

    def launch(batch: Any) -> Any:
        time.sleep(seconds)
        return real(batch)

    monkeypatch.setattr(runner, "launch", launch)


@pytest.mark.parametrize("how", ["replace", "unload"])
def test_a_preempted_sequence_goes_on_with_the_version_it_began_with(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    write_adapter(tmp_path / "x", seed=5, rank=16)
    room = 8 * 8192  # KV blocks for one of the two
    engine = make_engine(adapters_dir=str(tmp_path), kv_cache_memory=room, max_total_tokens=128)
    long: dict[str, Any] = {"length": 20, "max_tokens": 100}
    expected = alone(engine, [request("r", "x", **long)])["r"]
    slow_down(engine, monkeypatch, 0.005)
    engine.submit(request("base", **long))
    engine.submit(request("r", "x", **long))
    outputs: dict[str, list[TokenOutput]] = {}
    freed = None
    while len(outputs) < 2 or not all(said[-1].finish_reason for said in outputs.values()):
        for output in engine.outputs.get(timeout=30) or ():
            outputs.setdefault(output.request_id, []).append(output)
        if freed is None and engine.metrics()["multilora_preemptions_total"]:
            if how == "replace":
                write_adapter(tmp_path / "x", seed=6, rank=16)
                ask(engine, "load", "x")
            freed = engine.admin.execute(AdminCommand("unload", "x", timeout=30), 30)
    assert freed is not None, "nothing was preempted"
    assert freed.result(10)["freed_pages"] >= 1
    assert tokens(outputs["r"]) == expected
    assert outputs["r"][-1].finish_reason is FinishReason.LENGTH
    assert_all_free(engine)


def test_a_flood_of_cold_adapters_stays_within_host_memory(
    make_engine: MakeEngine, folder: Path, tmp_path: Path
):
    for number in range(40):
        write_adapter(tmp_path / f"x{number}", number, rank=16)
    size = page_bytes(folder)
    engine = make_engine(
        {"a": folder / "a"},
        adapters_dir=str(tmp_path),
        adapter_memory=size,
        adapter_host_memory=4 * size,
        max_running_requests=1,
    )
    engine.submit(request("base", max_tokens=240))
    for number in range(40):
        engine.submit(request(f"r{number}", f"x{number}"))
    most, left = 0.0, 41
    while left:
        left -= sum(bool(output.finish_reason) for output in engine.outputs.get(timeout=30) or ())
        most = max(most, engine.metrics()["multilora_adapter_host_bytes_used"])
    read = (tmp_path / "x0" / "adapter_model.safetensors").stat().st_size  # a page and a header
    assert most <= (4 + 6) * read  # those that were being read may come on top
    assert engine.metrics()["multilora_adapter_reads_total"] == 41  # none was read twice
    assert_all_free(engine)


def test_who_leaves_gives_way_to_others_at_once(
    make_engine: MakeEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A request that is aborted while its adapter is read must not keep host memory for it."""
    monkeypatch.setattr("multilora.engine._IDLE_SECONDS", 30.0)
    for number in range(2):
        write_adapter(tmp_path / f"x{number}", number, rank=16)
    size = page_bytes(folder)
    engine = make_engine(
        {"a": folder / "a"},
        adapters_dir=str(tmp_path),
        adapter_memory=size,
        adapter_host_memory=size,
    )
    alone(engine, [request("r", "a")])
    engine.submit(request("r0", "x0"))
    engine.abort("r0")
    drain(engine, 1)
    while engine.metrics()["multilora_adapters_loading"]:
        time.sleep(0.01)
    start = time.monotonic()
    assert len(alone(engine, [request("r1", "x1")])["r1"]) == 12
    assert time.monotonic() - start < 15


def test_a_failed_load_of_another_source_does_not_fail_requests(
    make_engine: MakeEngine, folder: Path, tmp_path: Path
):
    write_adapter(tmp_path / "bad", seed=1)
    (tmp_path / "bad/adapter_config.json").write_text("{}")
    size = page_bytes(folder)
    engine = make_engine(
        {name: folder / name for name in "abc"},
        adapter_allow=f"{tmp_path}/*",
        adapter_memory=size,
        adapter_host_memory=size,
    )
    expected = alone(engine, [request("r", "a"), request("s", "b"), request("t", "c")])["r"]
    with pytest.raises(RequestError, match="peft_type"):
        ask(engine, "load", "a", source=str(tmp_path / "bad"))  # which is in no tier now
    assert alone(engine, [request("r", "a")])["r"] == expected
    for name in "abc":
        ask(engine, "unpin", name)
    alone(engine, [request("s", "b"), request("t", "c")])
    assert ask(engine, "pin", "a")["tier"] != "disk"  # read again, though its facts were known
    assert ask(engine, "info", "a")["pinned"]


def test_time_outs_end_when_they_say(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_adapter(tmp_path / "x", seed=1)
    engine = make_engine(adapters_dir=str(tmp_path))
    gate, loader = threading.Event(), engine._parts.adapters._loader
    real = loader._read
    monkeypatch.setattr(loader, "_read", lambda source: gate.wait(10) and real(source))
    for ends in ("request", "command"):
        start = time.monotonic()
        if ends == "request":
            engine.submit(dataclasses.replace(request("r", "x"), adapter_timeout=0.1))
            error = drain(engine, 1)["r"][-1].error
        else:
            error = refusal(engine, "load", "x", timeout=0.1)
        assert error is not None and error.code is ErrorCode.UNAVAILABLE
        assert 0.09 < time.monotonic() - start < 5  # the reading takes 10
    gate.set()


def test_every_command_is_answered_when_the_engine_closes(make_engine: MakeEngine):
    engine = make_engine()
    asked: list[Future[Any]] = []
    asked += [engine.admin.execute(AdminCommand("info", "a"), 30) for _ in range(50)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(RequestError, match="shutting down; try again later"):
        while True:
            asked.append(engine.admin.execute(AdminCommand("list"), 30))
            asked.append(engine.admin.text("a", 30))
    closing.join()
    for answer in asked:
        error = answer.exception(1)
        assert error is None or isinstance(error, RequestError)


def test_close_does_not_wait_for_reads_that_have_not_begun(make_shop: MakeShop):
    shop = make_shop()
    shop.gate.clear()
    for _ in range(50):
        shop.manager.load(shop.source("a"), lambda error: None)
        shop.manager.unload("a")
    threading.Timer(0.1, shop.gate.set).start()
    start = time.monotonic()
    shop.manager.close()
    assert time.monotonic() - start < 2
    assert shop.num_reads <= 2, "one for each thread that reads folders"


def test_a_copy_that_fails_ends_the_requests_of_its_adapter_only(
    make_engine: MakeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    paths = {name: folder / name for name in "ab"}
    engine = make_engine(paths, adapter_memory=page_bytes(folder))
    alone(engine, [request("r", "a")])

    def write(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._parts.adapters.device.tensors, "write", write)
    for one in (request("a", "a"), request("b", "b"), request("base")):
        engine.submit(one)
    outputs = drain(engine, 3)
    error = outputs["b"][-1].error
    assert error is not None and error.code is ErrorCode.INTERNAL and "out of memory" in str(error)
    assert len(tokens(outputs["a"])) == len(tokens(outputs["base"])) == 12
    assert_all_free(engine)


def test_a_defect_that_only_waiting_requests_meet_ends_them(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
):
    engine = make_engine()

    def acquire(adapters: AdapterSet) -> AdapterSet:
        raise ZeroDivisionError

    monkeypatch.setattr(engine._parts.adapters, "acquire", acquire)
    engine.submit(request("r", "a"))
    error = drain(engine, 1)["r"][-1].error
    assert error is not None and error.code is ErrorCode.INTERNAL
    assert_all_free(engine)


def test_a_load_that_an_unload_has_overtaken_registers_nothing(
    make_engine: MakeEngine, tmp_path: Path
):
    """The load ends, and registers, between the two halves of the unload."""
    write_adapter(tmp_path / "x", seed=1)
    engine = make_engine(adapter_allow=f"{tmp_path}/*")
    catalog = engine._parts.catalog
    real, other = catalog.unregister, threading.get_ident()

    def unregister(adapter_id: str) -> bool:
        was_registered = real(adapter_id)
        if threading.get_ident() == other:
            ask(engine, "load", "x", source=str(tmp_path / "x"))
        return was_registered

    catalog.unregister = unregister
    assert ask(engine, "unload", "x")["freed_bytes"] > 0
    with pytest.raises(RequestError, match="not known"):
        engine.submit(request("r", "x"))


def test_copies_of_base_tables_are_served_and_merged(
    make_engine: MakeEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    weights = write_adapter(tmp_path / "x", seed=1, rank=4) / "adapter_model.safetensors"
    table = load_file(folder / "base/model.safetensors")["model.embed_tokens.weight"]
    names = ("base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight")
    save_file(load_file(weights) | {name: table.clone() for name in names}, weights)
    engine = make_engine({"a": folder / "a", "x": tmp_path / "x"})
    asked = [request("r", name) for name in ("a", "x")]
    plain, copied = (alone(engine, [one])["r"] for one in asked)
    assert plain == copied
    merged = ask(engine, "merge", merge=MergeRecipe(("a", "x"), (0.5, 0.5)))
    assert len(alone(engine, [request("r", merged["id"])])["r"]) == 12
