"""Adapters of a running engine: found, loaded, replaced, unloaded, while requests come and go."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multilora.adapters.admin.command import AdminCommand
from multilora.adapters.checkpoint import checks
from multilora.errors import ErrorCode, RequestError
from multilora.request import FinishReason, Request
from multilora_api.sampling import SamplingParams
from support.engine.downloads import use_hub
from support.engine.requests import (
    MakeEngine,
    alone,
    ask,
    assert_all_free,
    drain,
    entry,
    page_bytes,
    refusal,
    request,
    tokens,
)
from support.fake.hub import HubServer
from support.tiny.base import write_adapter

DAY = 86400.0


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    (tmp_path / "hub").mkdir()
    with HubServer(tmp_path / "hub") as server:
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 10)
        yield server


def test_list_shows_tiers_facts_and_counts(make_engine: MakeEngine, folder: Path):
    size = page_bytes(folder)
    paths = {name: folder / name for name in "abc"}
    engine = make_engine(paths, adapter_memory=2 * size, adapter_host_memory=2 * size)
    alone(engine, [request("r", "a")])
    assert [entry(engine, name)["tier"] for name in "abc"].count("device") == 2
    shown = entry(engine, "a")
    assert shown["tier"] == "device" and shown["state"] == "ready" and shown["pinned"]
    assert (shown["rank"], shown["pages"], shown["bytes"]) == (4, 1, size)
    assert (shown["requests"], shown["running"], shown["waiting"]) == (1, 0, 0)
    assert shown["origin"] == "registered" and len(shown["modules"]) == 7
    assert abs(shown["last_used"] - time.time()) < 30
    with pytest.MonkeyPatch.context() as patch:  # the clock is set forward
        patch.setattr(time, "time", lambda now=time.time: now() + DAY)
        assert abs(entry(engine, "a")["last_used"] - shown["last_used"] - DAY) < 0.1
    memory = ask(engine, "list")["memory"]
    assert (memory["device_pages"], memory["page_bytes"]) == (2, size)
    assert memory["host_bytes_used"] <= memory["host_bytes"] == 2 * size


def test_a_dropped_folder_is_served_and_unload_gives_everything_back(
    make_engine: MakeEngine, tmp_path: Path
):
    engine = make_engine(adapters_dir=str(tmp_path))
    before = engine.metrics()
    write_adapter(tmp_path / "team/new", seed=8, rank=20)
    answer = alone(engine, [request("r", "team/new")])["r"]
    assert len(answer) == 12
    shown = entry(engine, "team/new")
    assert (shown["tier"], shown["origin"], shown["pages"]) == ("device", "directory", 2)
    freed = ask(engine, "unload", "team/new")
    size = (tmp_path / "team/new/adapter_model.safetensors").stat().st_size
    assert freed == {"id": "team/new", "freed_pages": 2, "freed_bytes": size}
    after = engine.metrics()
    for name in ("multilora_adapter_pages_used", "multilora_adapter_host_bytes_used"):
        assert after[name] == before[name]
    assert entry(engine, "team/new")["tier"] == "disk"
    assert alone(engine, [request("r", "team/new")])["r"] == answer  # its folder is still there


def test_an_unloaded_registered_adapter_is_gone_until_it_is_loaded_again(
    make_engine: MakeEngine, folder: Path
):
    engine = make_engine(adapter_allow=f"{folder}/*")
    answer = alone(engine, [request("r", "b")])["r"]
    ask(engine, "unload", "b")
    with pytest.raises(RequestError) as caught:
        engine.submit(request("r", "b"))
    assert caught.value.code is ErrorCode.NOT_FOUND
    for action in ("info", "unload"):
        assert refusal(engine, action, "b").code is ErrorCode.NOT_FOUND
    ask(engine, "load", "c")
    assert refusal(engine, "unload", "nobody").code is ErrorCode.NOT_FOUND
    loaded = ask(engine, "load", "b", source=str(folder / "b"))
    assert (loaded["tier"], loaded["state"], loaded["rank"]) == ("host", "ready", 8)
    assert alone(engine, [request("r", "b")])["r"] == answer
    assert refusal(engine, "load", "b", source="/etc").code is not ErrorCode.INTERNAL


def test_a_load_that_fails_registers_nothing(
    make_engine: MakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    engine = make_engine(adapter_allow=f"{tmp_path}/*")
    write_adapter(tmp_path / "bad", seed=1)
    (tmp_path / "bad/adapter_config.json").write_text("{}")
    error = refusal(engine, "load", "bad", source=str(tmp_path / "bad"))
    assert error.code is ErrorCode.INVALID_ARG and "peft_type" in error.message
    assert entry(engine, "bad")["state"] == "failed"
    assert error.message in caplog.text
    with pytest.raises(RequestError):
        engine.submit(request("r", "bad"))


def test_unload_waits_for_running_sequences(make_engine: MakeEngine):
    engine = make_engine()
    expected = alone(engine, [request("r", "a", max_tokens=200)])["r"]
    engine.submit(request("r", "a", max_tokens=200))
    engine.outputs.get(timeout=10)  # it runs
    command = AdminCommand("unload", "a", timeout=30)
    freed = engine.admin.execute(command, 30)
    with pytest.raises(RequestError, match="has been unloaded"):
        engine.submit(request("r2", "a"))
    outputs = drain(engine, 1)["r"]
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert tokens(outputs)[-50:] == expected[-50:]
    assert freed.result(10)["freed_pages"] == 1
    assert_all_free(engine)


def test_unload_with_cancel_ends_running_and_waiting_sequences(make_engine: MakeEngine):
    engine = make_engine(max_running_requests=1)
    for name, adapter in [("r1", "a"), ("r2", "a"), ("r3", "b")]:
        engine.submit(request(name, adapter, max_tokens=200))
    ask(engine, "unload", "a", cancel=True)
    outputs = drain(engine, 3)
    for name in ("r1", "r2"):
        error = outputs[name][-1].error
        assert error is not None and error.code is ErrorCode.NOT_FOUND
        assert "unloaded" in error.message
    assert outputs["r3"][-1].finish_reason is FinishReason.LENGTH
    assert_all_free(engine)


def test_unload_that_takes_too_long_says_what_goes_on(make_engine: MakeEngine):
    engine = make_engine()
    engine.submit(request("r", "a", length=4, max_tokens=250))
    engine.outputs.get(timeout=10)  # it runs
    error = refusal(engine, "unload", "a", timeout=0.001)
    assert error.code is ErrorCode.UNAVAILABLE and "still use it" in error.message
    drain(engine, 1)
    assert_all_free(engine)
    deadline = time.monotonic() + 5
    while "a" in {item["id"] for item in ask(engine, "list")["adapters"]}:
        assert time.monotonic() < deadline


def test_pinned_adapters_stay_where_others_come_and_go(
    make_engine: MakeEngine, folder: Path, tmp_path: Path
):
    for seed in range(6):
        write_adapter(tmp_path / f"x{seed}", seed, rank=16)
    size = page_bytes(folder)
    engine = make_engine(
        {"x0": tmp_path / "x0"},
        adapters_dir=str(tmp_path),
        adapter_memory=2 * size,
        adapter_host_memory=2 * size,
    )
    assert not ask(engine, "unpin", "x0")["pinned"]
    assert ask(engine, "pin", "x1")["pinned"]
    for number in (2, 3, 4, 5, 2, 3):
        alone(engine, [request("r", f"x{number}")])
        assert entry(engine, "x1")["tier"] == "device"
    assert entry(engine, "x0")["tier"] == "disk"
    assert refusal(engine, "pin", "nobody").code is ErrorCode.NOT_FOUND


def test_administration_can_be_switched_off(make_engine: MakeEngine):
    engine = make_engine(adapter_admin="off")
    for action in ("load", "unload", "pin", "unpin"):
        error = refusal(engine, action, "a")
        assert error.code is ErrorCode.INVALID_ARG and "--adapter-admin" in error.message
    assert entry(engine, "a")["state"] == "ready"
    assert ask(engine, "info", "a")["id"] == "a"


def test_loads_and_an_unload_of_one_adapter_at_once(make_engine: MakeEngine, tmp_path: Path):
    write_adapter(tmp_path / "x", seed=4, rank=16)
    engine = make_engine(adapters_dir=str(tmp_path))
    held = engine.metrics()["multilora_adapter_pages_used"]
    for round_ in range(10):
        commands = ["load", "unload", "load"] if round_ % 2 else ["load", "load", "unload"]
        answers = [
            engine.admin.execute(AdminCommand(action, "x", timeout=30), 30) for action in commands
        ]
        engine.submit(request(f"r{round_}", "x"))
        for answer in answers:
            error = answer.exception(30)
            assert error is None or isinstance(error, RequestError)
        last = drain(engine, 1)[f"r{round_}"][-1]
        assert last.finish_reason is FinishReason.LENGTH or last.error is not None
    ask(engine, "load", "x")
    assert len(alone(engine, [request("r", "x")])["r"]) == 12
    ask(engine, "unload", "x")
    assert engine.metrics()["multilora_adapter_pages_used"] == held
    assert_all_free(engine)


def test_streams_go_on_while_a_slow_download_is_waited_for(make_engine: MakeEngine, hub: HubServer):
    write_adapter(hub.root / "org/slow", seed=6, rank=8)
    hub.faults["org/slow/adapter_model.safetensors"] = "slow"
    engine = make_engine(adapter_allow="org/*")
    engine.submit(request("cold", "org/slow", length=8))
    hurried = Request("hurried", (5, 6, 7), "org/slow", SamplingParams(), adapter_timeout=1)
    engine.submit(hurried)
    for number in range(3):
        assert len(alone(engine, [request(f"warm{number}", "a")])[f"warm{number}"]) == 12
    outputs = drain(engine, 2)
    error = outputs["hurried"][-1].error
    assert error is not None and error.code is ErrorCode.UNAVAILABLE
    assert "adapter_timeout" in error.message
    assert len(tokens(outputs["cold"])) == 12  # who gave up did not stop the load
    assert hub.hits["org/slow/adapter_model.safetensors"] == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("adapter_config.json", "{", "adapter_config.json is not JSON"),
        ("adapter_model.safetensors", "{", "adapter_model.safetensors is corrupt or cut short"),
        ("", "", "there is no folder"),
    ],
)
def test_the_error_of_a_load_names_its_adapter_once(
    make_engine: MakeEngine, tmp_path: Path, name: str, content: str, reason: str
):
    engine = make_engine(adapter_allow=f"{tmp_path}/*")
    if name:
        write_adapter(tmp_path / "x", seed=4)
        (tmp_path / "x" / name).write_text(content)
    error = refusal(engine, "load", "mine", source=str(tmp_path / "x"))
    assert error.message.startswith(f"adapter 'mine': {reason}"), error.message
    assert error.message.count("adapter 'mine'") == 1


def test_what_the_hub_lacks_is_told_to_its_requests_only(make_engine: MakeEngine, hub: HubServer):
    engine = make_engine(adapter_allow="org/*")
    with pytest.raises(RequestError, match="--adapter-allow") as caught:
        engine.submit(request("r", "other/adapter"))
    assert caught.value.code is ErrorCode.NOT_FOUND
    for number in range(20):
        engine.submit(request(f"missing{number}", f"org/missing{number % 4}"))
    engine.submit(request("fine", "a"))
    outputs = drain(engine, 21)
    for number in range(20):
        error = outputs[f"missing{number}"][-1].error
        assert error is not None and error.code is ErrorCode.NOT_FOUND, error
    assert len(tokens(outputs["fine"])) == 12
    assert_all_free(engine)


def test_changes_need_the_admin_key_where_there_is_one(make_engine: MakeEngine, folder: Path):
    engine = make_engine({"a": folder / "a"}, admin_key="kéy")
    for action in ("load", "unload", "pin", "unpin"):
        for key in ("", "k", "kéy "):
            with pytest.raises(RequestError, match=f"{action} needs the admin key") as caught:
                engine.admin.execute(AdminCommand(action, "a", admin_key=key), 30)
            assert caught.value.code is ErrorCode.INVALID_ARG
            assert "kéy" not in caught.value.message
    assert ask(engine, "info", "a")["id"] == "a" and ask(engine, "list")["adapters"]
    pinned = engine.admin.execute(AdminCommand("unpin", "a", admin_key="kéy"), 30)
    assert pinned.result(30)["pinned"] is False


def test_a_list_tells_what_is_refused_before_anybody_asks(make_engine: MakeEngine, tmp_path: Path):
    spoilt: dict[str, tuple[str, bytes, str]] = {
        "dora": ("adapter_config.json", b'{"peft_type": "LORA", "use_dora": true}', "DoRA"),
        "no-lora": ("adapter_config.json", b"{}", "peft_type must be LORA"),
        "ranks": ("adapter_config.json", b'{"peft_type": "LORA", "r": 3}', "says 3"),
        "pointer": ("adapter_model.safetensors", b"version https://git-lfs.github.com/spec/v1\n",
                    "is a Git LFS pointer"),
        "text": ("adapter_model.safetensors", b"Not found", "is corrupt or cut short"),
    }  # fmt: skip
    write_adapter(tmp_path / "good", seed=1)
    for name, (file, content, _) in spoilt.items():
        write_adapter(tmp_path / name, seed=1)
        (tmp_path / name / file).write_bytes(content)
    write_adapter(tmp_path / "pickle", seed=1)
    (tmp_path / "pickle/adapter_model.safetensors").rename(tmp_path / "pickle/adapter_model.bin")
    engine = make_engine(adapters_dir=str(tmp_path))
    for asked in (False, True):
        assert (entry(engine, "good")["state"], entry(engine, "good")["error"]) == ("ready", None)
        for name, (_, _, reason) in {**spoilt, "pickle": ("", b"", "is a pickle")}.items():
            for shown in (entry(engine, name), ask(engine, "info", name)):
                assert (shown["state"], shown["error_code"]) == ("failed", "INVALID_ARG")
                assert shown["error"].startswith(f"adapter '{name}': ") and reason in shown["error"]
            if not asked:
                engine.submit(request("r", name))
                error = drain(engine, 1)["r"][-1].error
                assert error is not None and error.code is ErrorCode.INVALID_ARG
    write_adapter(tmp_path / "dora", seed=2)
    assert ask(engine, "load", "dora")["state"] == "ready"
    write_adapter(tmp_path / "ranks", seed=2, rank=3)
    deadline = time.monotonic() + 10  # the watch notices
    while entry(engine, "ranks")["state"] != "ready":
        assert time.monotonic() < deadline


def test_adapters_of_one_form_are_checked_once(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checked: list[int] = []
    real = checks.lora_factors

    def counted(tensors: Any, *others: Any):
        checked.append(len(tensors))
        return real(tensors, *others)

    engine = make_engine(adapters_dir=str(tmp_path))
    for number in range(30):
        config = write_adapter(tmp_path / f"x{number}", seed=number) / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": number}))
    monkeypatch.setattr(checks, "lora_factors", counted)
    for _ in range(3):
        assert len(ask(engine, "list")["adapters"]) == 6 + 30
    assert len(checked) == 1


def test_the_list_does_not_grow_by_asking(make_engine: MakeEngine, hub: HubServer):
    write_adapter(hub.root / "org/dora", seed=6)
    (hub.root / "org/dora/adapter_config.json").write_text('{"use_dora": true}')
    write_adapter(hub.root / "org/fine", seed=6)
    engine = make_engine(adapter_allow="org/*")
    before = [item["id"] for item in ask(engine, "list")["adapters"]]
    names = [f"org/misspelt{number}" for number in range(20)] + ["org/dora"]
    for number, name in enumerate([*names, "org/fine"]):
        engine.submit(request(f"r{number}", name))
    outputs = drain(engine, len(names) + 1)
    assert sum(said[-1].error is not None for said in outputs.values()) == len(names)
    assert [item["id"] for item in ask(engine, "list")["adapters"]] == [*before, "org/fine"]
    told = ask(engine, "info", "org/dora")
    assert told["state"] == "failed" and "peft_type" in told["error"]
