"""Merges asked of an engine: one adapter for one recipe, made once, by the rules of requests."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from multilora.adapters.admin.command import AdminCommand
from multilora.adapters.merging import merger as merger_module
from multilora.adapters.merging.cache import MergeCache
from multilora.adapters.merging.merger import AdapterMerger
from multilora.adapters.merging.recipe import parse_merge
from multilora.engine import Engine
from multilora.errors import ErrorCode, RequestError
from support.engine.downloads import use_hub
from support.engine.requests import (
    MakeEngine,
    alone,
    ask,
    assert_all_free,
    drain,
    entry,
    refusal,
    request,
)
from support.fake.hub import HubServer
from support.tiny.base import write_adapter


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/merged-adapters"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    (tmp_path / "hub").mkdir()
    with HubServer(tmp_path / "hub") as server:
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        yield server


def merge(engine: Engine, *ids: str, token: str = "", **fields: Any) -> dict[str, Any]:
    recipe = parse_merge({"ids": list(ids), **fields})
    return ask(engine, "merge", merge=recipe, adapter_token=token)


def merger(engine: Engine) -> AdapterMerger:
    return engine.admin._merger


def _forget(engine: Engine, name: str) -> None:
    engine.admin._manager.unload(name)


def error_of(engine: Engine, *ids: str, **fields: Any) -> RequestError:
    return refusal(engine, "merge", merge=parse_merge({"ids": list(ids), **fields}))


def test_a_merge_is_an_adapter_that_answers(make_engine: MakeEngine):
    engine = make_engine()
    merged = merge(engine, "a", "b")
    assert merged["id"].startswith("merged:") and merged["origin"] == "merged"
    assert (merged["rank"], merged["state"]) == (8, "ready") and not merged["pinned"]
    answers = alone(engine, [request(f"r{i}", name) for i, name in enumerate(("a", "b", ""))])
    answer = alone(engine, [request("r3", merged["id"])])["r3"]
    assert answer not in answers.values()
    assert entry(engine, merged["id"])["tier"] == "device"
    assert_all_free(engine)


def test_weight_one_of_one_adapter_is_that_adapter(make_engine: MakeEngine):
    engine = make_engine()
    same = merge(engine, "c", merge_strategy="ties", density=0.1)["id"]
    other = merge(engine, "c", weights=[-1])["id"]
    own, equal, opposite = (alone(engine, [request("r", name)])["r"] for name in ("c", same, other))
    assert own == equal != opposite


def test_one_recipe_is_computed_once(make_engine: MakeEngine, cache: Path):
    engine = make_engine()
    fields = {"merge_strategy": "dare_ties", "density": 0.5}
    first = merge(engine, "a", "b", **fields)
    files = {path: path.stat() for path in cache.rglob("*.*")}
    assert merge(engine, "a", "b", **fields)["id"] == first["id"]
    assert merger(engine).computed == 1
    assert {path: path.stat() for path in cache.rglob("*.*")} == files
    others = {merge(engine, *ids, **fields)["id"] for ids in ("ba", "abc")}
    assert len(others | {first["id"], merge(engine, "a", "b")["id"]}) == 4
    again = make_engine()  # the folder is still there
    assert merge(again, "a", "b", **fields)["id"] == first["id"]
    assert merger(again).computed == 0


def test_many_at_once_share_one_computation(make_engine: MakeEngine):
    engine = make_engine()
    recipe = parse_merge({"ids": ["d", "e", "f"]})
    command = AdminCommand("merge", merge=recipe)
    answers = [engine.admin.execute(command, 30) for _ in range(12)]
    assert len({answer.result(30)["id"] for answer in answers}) == 1
    assert merger(engine).computed == 1


def test_a_replaced_part_gives_another_merge(make_engine: MakeEngine, tmp_path: Path):
    root = tmp_path / "adapters"
    write_adapter(root / "x", seed=21)
    engine = make_engine(adapters_dir=str(root))
    first = merge(engine, "x", "a")["id"]
    write_adapter(root / "x", seed=22)
    second = merge(engine, "x", "a")["id"]
    assert first != second
    answers = [alone(engine, [request("r", name)])["r"] for name in (first, second)]
    assert answers[0] != answers[1]


def test_a_part_that_is_replaced_while_it_is_looked_up_is_not_taken_for_the_old_one(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whoever brings the old files back, stamps and all, gets the merge of these."""
    root, here, aside = tmp_path / "adapters", tmp_path / "adapters/x", tmp_path / "aside"
    write_adapter(here, seed=21)
    write_adapter(aside, seed=22)
    engine = make_engine(adapters_dir=str(root))
    really_stamps = merger_module.stamps

    def swap() -> None:
        here.rename(tmp_path / "between")
        aside.rename(here)
        (tmp_path / "between").rename(aside)

    def stamps_and_swap(*arguments: Any) -> Any:
        found = really_stamps(*arguments)
        monkeypatch.setattr(merger_module, "stamps", really_stamps)
        swap()
        return found

    monkeypatch.setattr(merger_module, "stamps", stamps_and_swap)
    new = merge(engine, "x")["id"]
    assert merge(engine, "x")["id"] == new
    swap()
    assert merge(engine, "x")["id"] != new


def test_parts_are_what_requests_may_name(make_engine: MakeEngine, tmp_path: Path):
    engine = make_engine(adapter_admin="off")  # which is about what others would notice
    assert merge(engine, "a", "b")["state"] == "ready"
    assert error_of(engine, "a", "nobody").code is ErrorCode.NOT_FOUND
    assert "--adapter-allow" in error_of(engine, "a", "org/private").message
    assert error_of(engine, "/etc/passwd").code is ErrorCode.INVALID_ARG
    assert error_of(engine, "a", "merged:0123456789abcdef").code is ErrorCode.NOT_FOUND
    nested = merge(engine, merge(engine, "a", "b")["id"], "c")
    assert nested["rank"] == 16


def test_a_broken_part_is_named_and_registers_nothing(make_engine: MakeEngine, tmp_path: Path):
    root = tmp_path / "adapters"
    write_adapter(root / "bad", seed=1)
    (root / "bad/adapter_model.safetensors").write_bytes(b"short")
    engine = make_engine(adapters_dir=str(root))
    error = error_of(engine, "a", "bad")
    assert error.code is ErrorCode.INVALID_ARG and error.message.startswith("adapter 'bad': ")
    assert error.message.count("'bad'") == 1
    origins = {item["origin"] for item in ask(engine, "list")["adapters"]}
    assert "merged" not in origins


def test_the_least_recently_used_leave(make_engine: MakeEngine, cache: Path):
    engine = make_engine()
    merger(engine)._cache = MergeCache(2)
    first, second = (merge(engine, "a", "b", weights=[1, weight])["id"] for weight in (2, 3))
    alone(engine, [request("r", first)])
    third = merge(engine, "a", "b", weights=[1, 4])["id"]
    assert len(list(cache.iterdir())) == 2
    for name in (first, third):
        assert len(alone(engine, [request("r", name)])["r"]) == 12
    with pytest.raises(RequestError, match="ask for the merge again"):
        engine.submit(request("r", second))
    assert merge(engine, "a", "b", weights=[1, 3])["id"] == second
    assert len(alone(engine, [request("r", second)])["r"]) == 12


def test_a_pinned_merge_stays(make_engine: MakeEngine):
    engine = make_engine()
    merger(engine)._cache = MergeCache(2)
    first = merge(engine, "a", "b", weights=[1, 2])["id"]
    ask(engine, "pin", adapter_id=first)
    second, third = (merge(engine, "a", "b", weights=[1, weight])["id"] for weight in (3, 4))
    for name in (first, third):
        assert len(alone(engine, [request("r", name)])["r"]) == 12
    with pytest.raises(RequestError, match="ask for the merge again"):
        engine.submit(request("r", second))


def test_a_clock_that_was_set_back_does_not_change_what_leaves(
    make_engine: MakeEngine, cache: Path
):
    engine = make_engine()
    merger(engine)._cache = MergeCache(2)
    first = merge(engine, "a", "b", weights=[1, 2])["id"]
    for folder in cache.iterdir():  # used when the clock was a day ahead
        tomorrow = time.time() + 86400
        os.utime(folder, (tomorrow, tomorrow))
    second, third = (merge(engine, "a", "b", weights=[1, weight])["id"] for weight in (3, 4))
    for name in (second, third):
        assert len(alone(engine, [request("r", name)])["r"]) == 12
    with pytest.raises(RequestError, match="ask for the merge again"):
        engine.submit(request("r", first))


def test_a_clock_that_is_set_forward_removes_no_draft(make_engine: MakeEngine, cache: Path):
    engine = make_engine()
    cache.mkdir(parents=True)
    draft = cache / ".draft-of-another-process"
    draft.mkdir()
    os.utime(draft, (1e9, 1e9))  # so old it looks when the clock has been set forward
    writing = os.open(draft, os.O_RDONLY)
    fcntl.flock(writing, fcntl.LOCK_EX)
    merge(engine, "a", "b")
    assert draft.exists()
    os.close(writing)
    merge(engine, "a", "c")
    assert not draft.exists()


def test_a_lost_folder_is_made_again(make_engine: MakeEngine, cache: Path):
    engine = make_engine()
    name = merge(engine, "a", "b")["id"]
    shutil.rmtree(cache)
    assert merge(engine, "a", "b")["id"] == name
    assert merger(engine).computed == 2 and len(list(cache.iterdir())) == 1


def test_what_a_killed_process_left_is_removed(make_engine: MakeEngine, cache: Path):
    engine = make_engine()
    merge(engine, "a", "b")
    left, fresh = cache / ".draft-left", cache / ".draft-fresh"
    for draft in (left, fresh):
        draft.mkdir()
        (draft / "adapter_model.safetensors").write_bytes(b"half")
    os.utime(left, (1e9, 1e9))
    merge(engine, "a", "c")
    assert fresh.is_dir() and not left.exists()
    assert len(list(cache.iterdir())) == 3


def test_unload_ends_a_merge(make_engine: MakeEngine):
    engine = make_engine()
    name = merge(engine, "a", "b")["id"]
    ask(engine, "unload", name)
    with pytest.raises(RequestError):
        engine.submit(request("r", name))


def test_private_parts_need_the_token(make_engine: MakeEngine, hub: HubServer):
    write_adapter(hub.root / "org/private", seed=6)
    hub.token = "hf_right"
    engine = make_engine(adapter_allow="org/*")
    assert error_of(engine, "a", "org/private").code is ErrorCode.NOT_FOUND
    assert merge(engine, "a", "org/private", token="hf_right")["state"] == "ready"
    asked = hub.asked
    merge(engine, "a", "org/private", token="hf_right", weights=[1, 2])
    assert hub.asked == asked, "a fresh download is not asked for again"
    assert error_of(engine, "a", "org/private").code is ErrorCode.NOT_FOUND


def test_a_folder_that_somebody_removed_is_no_lasting_failure(make_engine: MakeEngine, cache: Path):
    engine = make_engine()
    name = merge(engine, "a", "b")["id"]
    shutil.rmtree(cache)
    engine._inbox.put(lambda: _forget(engine, name))  # as when others push it out of memory
    engine.submit(request("r1", name))
    error = drain(engine, 1)["r1"][-1].error
    assert error is not None and error.code is ErrorCode.NOT_FOUND
    assert merge(engine, "a", "b")["id"] == name
    assert len(alone(engine, [request("r2", name)])["r2"]) == 12
