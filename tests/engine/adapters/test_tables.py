"""Adapters of embed_tokens and lm_head in a running engine: switched on, served, merged, listed."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from multilora.adapters.merging.recipe import MergeRecipe
from multilora.errors import RequestError, StartupError
from support.engine.peft import by_peft
from support.engine.requests import (
    MakeEngine,
    ask,
    assert_all_free,
    entry,
    page_bytes,
    request,
    run,
    tokens,
)
from support.tiny.base import HIDDEN, TABLES, VOCAB, write_adapter

BOTH = tuple(TABLES)


@pytest.fixture(scope="module", name="adapters")
def adapter_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "embedding": write_adapter(root / "embedding", 1, 4, (), ["embed_tokens"]),
        "head": write_adapter(root / "head", 2, 24, (), ["lm_head"]),
        "all": write_adapter(root / "all", 3, 20, tables=BOTH),
        "plain": write_adapter(root / "plain", 4),
    }


def test_registered_adapters_switch_their_tables_on(
    make_engine: MakeEngine,
    folder: Path,
    adapters: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "multilora.memory")
    engine = make_engine(adapters)
    asked = [request(name, name, 9) for name in adapters] + [request("base", "", 9)]
    crowd = run(engine, *asked)
    for one in asked[:-1]:
        expected = by_peft(folder / "base", adapters[one.adapter_id], one, 12)
        assert tokens(crowd[one.request_id]) == expected
    plain = make_engine({"plain": adapters["plain"]})
    assert tokens(crowd["base"]) == tokens(run(plain, request("base", "", 9))["base"])
    assert entry(engine, "embedding")["modules"] == ["embed_tokens"]
    assert entry(engine, "all")["modules"][0] == "embed_tokens"
    assert entry(engine, "all")["modules"][-1] == "lm_head"
    small, large = page_bytes(folder), 2 * (VOCAB + HIDDEN) * 16 * 4
    assert ask(engine, "list")["memory"]["page_bytes"] == small + large
    assert ask(plain, "list")["memory"]["page_bytes"] == small
    (line,) = (line for line in caplog.messages if "of them" in line)
    assert line.endswith("for embed_tokens and lm_head")
    assert_all_free(engine)


def test_one_table_takes_no_room_for_the_other(
    make_engine: MakeEngine, folder: Path, adapters: dict[str, Path]
) -> None:
    engine = make_engine({"head": adapters["head"]}, adapters_dir=str(adapters["all"].parent))
    expected = page_bytes(folder) + (VOCAB + HIDDEN) * 16 * 4
    assert ask(engine, "list")["memory"]["page_bytes"] == expected
    shown = entry(engine, "all")
    assert shown["state"] == "failed"
    reason = "is LoRA on embed_tokens, for which the pages of adapter memory have no room"
    assert reason in shown["error"] and "--lora-target-modules" in shown["error"]
    with pytest.raises(RequestError, match="start the server with embed_tokens in"):
        ask(engine, "load", "all")


@pytest.mark.parametrize("setting", ["all", "lm_head,embed_tokens", "embed_tokens q_proj lm_head"])
def test_tables_for_adapters_that_come_later(
    make_engine: MakeEngine, folder: Path, adapters: dict[str, Path], setting: str
) -> None:
    directory = str(adapters["all"].parent)
    engine = make_engine(
        {"plain": adapters["plain"]}, adapters_dir=directory, lora_target_modules=setting
    )
    one = request("r", "all", 9, max_tokens=3)
    assert tokens(run(engine, one)["r"]) == by_peft(folder / "base", adapters["all"], one, 3)


def test_modules_that_the_base_does_not_have(make_engine: MakeEngine) -> None:
    with pytest.raises(StartupError, match="no module 'wte'; there are all, auto, down_proj") as no:
        make_engine(lora_target_modules="lm_head,wte")
    assert "--lora-target-modules" in str(no.value)


def test_a_registered_adapter_that_cannot_be_served_has_its_own_reason(
    make_engine: MakeEngine, adapters: dict[str, Path]
) -> None:
    with pytest.raises(StartupError, match=r"'all': .*rank 20, over the limit of 16"):
        make_engine({"all": adapters["all"]}, max_lora_rank=16)


def test_merges_of_tables(
    make_engine: MakeEngine,
    folder: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The merge is a PEFT folder: PEFT gives the same tokens with it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    engine = make_engine(adapters)
    recipe = MergeRecipe(("all", "embedding", "plain"), (0.5, 1.0, 0.5))
    merged = ask(engine, "merge", merge=recipe)
    assert len(merged["modules"]) == 9
    one = request("r", merged["id"], 9, max_tokens=3)
    expected = by_peft(folder / "base", Path(merged["source"]), one, 3)
    assert tokens(run(engine, one)["r"]) == expected
