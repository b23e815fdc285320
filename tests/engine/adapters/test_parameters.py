"""Adapters of experts and routers in a running engine: switched on, served, listed, not merged."""

from pathlib import Path
from typing import Any

import pytest
import torch

from multilora.adapters.merging.recipe import MergeRecipe
from multilora.errors import RequestError, StartupError
from multilora.forward.base_model import read_base
from multilora.lora.rank_pages import bytes_per_page
from support.engine.peft import by_peft
from support.engine.requests import (
    MakeEngine,
    ask,
    assert_all_free,
    entry,
    refusal,
    request,
    run,
    tokens,
)
from support.tiny.adapters import ATTENTION, make_adapter
from support.tiny.families import make_model, write_model

EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
CONFIGS: dict[str, dict[str, Any]] = {
    "experts": {"target_modules": [], "target_parameters": list(EXPERTS), "r": 20},
    "down": {"target_modules": ["o_proj"], "target_parameters": [EXPERTS[1]]},
    "router": {"target_modules": [], "target_parameters": ["gate.weight"]},
    "plain": {"target_modules": list(ATTENTION)},
}


@pytest.fixture(scope="module", name="root")
def mixture_with_adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixture")
    write_model(make_model("qwen3_moe"), root / "base")
    for seed, (name, config) in enumerate(CONFIGS.items()):
        make_adapter(root / "adapters" / name, "qwen3_moe", seed, **config)
    return root


def page_bytes(root: Path, *places: str) -> int:
    return bytes_per_page(read_base(root / "base", "auto").with_places(places).sites, torch.float32)


def test_registered_adapters_switch_their_parameters_on(
    make_engine: MakeEngine, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "multilora.memory")
    folders = {name: root / "adapters" / name for name in CONFIGS}
    engine = make_engine(folders, model_id=str(root / "base"), max_batch_prefill_tokens=24)
    asked = [request(name, name, 17) for name in CONFIGS] + [request("base", "", 17)]
    crowd = run(engine, *asked)
    for one in asked[:-1]:
        expected = by_peft(root / "base", folders[one.adapter_id], one, 12)
        assert tokens(crowd[one.request_id]) == expected
    plain = make_engine({"plain": folders["plain"]}, model_id=str(root / "base"))
    assert tokens(crowd["base"]) == tokens(run(plain, request("base", "", 17))["base"])
    assert entry(engine, "down")["modules"] == ["o_proj", "experts.down_proj"]
    assert ask(engine, "list")["memory"]["page_bytes"] == page_bytes(root, "gate.weight", *EXPERTS)
    assert ask(plain, "list")["memory"]["page_bytes"] == page_bytes(root)
    (line,) = (line for line in caplog.messages if "of them" in line)
    assert line.endswith("for gate.weight and experts.gate_up_proj and experts.down_proj")
    assert_all_free(engine)
    recipe = MergeRecipe(("plain", "down"), (0.5, 0.5))
    refused = refusal(engine, "merge", merge=recipe)
    assert "'down'" in refused.message and "parameter experts.down_proj" in refused.message


@pytest.mark.parametrize("setting", ["auto", "all"])
def test_experts_are_no_places_unless_they_are_named(
    make_engine: MakeEngine, root: Path, setting: str
) -> None:
    """ "all" means modules: pages that hold experts are many times as large."""
    engine = make_engine(
        {"plain": root / "adapters" / "plain"},
        model_id=str(root / "base"),
        adapters_dir=str(root / "adapters"),
        lora_target_modules=setting,
    )
    tables = ("embed_tokens", "lm_head") if setting == "all" else ()
    assert ask(engine, "list")["memory"]["page_bytes"] == page_bytes(root, *tables)
    assert entry(engine, "down")["state"] == "failed"
    with pytest.raises(RequestError, match=r"server with experts\.down_proj in --lora-target"):
        ask(engine, "load", "down")
    refused = refusal(engine, "merge", merge=MergeRecipe(("plain", "down"), (0.5, 0.5)))
    assert "'down'" in refused.message and "LoRA on experts.down_proj" in refused.message


def test_parameters_for_adapters_that_come_later(make_engine: MakeEngine, root: Path) -> None:
    engine = make_engine(
        {"plain": root / "adapters" / "plain"},
        model_id=str(root / "base"),
        adapters_dir=str(root / "adapters"),
        lora_target_modules=",".join(EXPERTS),
    )
    one = request("r", "experts", 9, max_tokens=3)
    expected = by_peft(root / "base", root / "adapters" / "experts", one, 3)
    assert tokens(run(engine, one)["r"]) == expected


def test_parameters_that_the_base_model_has_not(make_engine: MakeEngine, root: Path) -> None:
    there = r"there are all, auto, .*experts\.down_proj, experts\.gate_up_proj, .*gate\.weight"
    with pytest.raises(StartupError, match=rf"no module 'experts\.w2'; {there}"):
        make_engine(model_id=str(root / "base"), lora_target_modules="experts.w2")
