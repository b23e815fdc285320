"""Merged factors against PEFT's own add_weighted_adapter, and what PEFT itself refuses."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils import merge_utils

from multilora.adapters.checkpoint.adapter import read_checkpoint
from multilora.adapters.checkpoint.peft_tensors import Factors
from multilora.adapters.merging.arithmetic import as_checkpoint, merge_factors
from multilora.adapters.merging.recipe import MergeRecipe, parse_merge
from multilora.base_model.config import NativeConfig
from multilora.base_model.sites import TABLES
from support.tiny.adapters import ATTENTION, make_adapter
from support.tiny.families import make_model


def read(root: Path, name: str, max_rank: int = 64) -> dict[str, Factors]:
    sites = base_of(root).sites
    return read_checkpoint(root / name, sites, max_rank, base_folder=root / "base").factors


def path(layer: int, module: str) -> str:
    return f"model.layers.{layer}.{module}"


def base_of(root: Path) -> NativeConfig:
    if not (root / "base").is_dir():
        make_model("llama").save_pretrained(root / "base")
    return NativeConfig.from_folder(root / "base").with_places(TABLES)


def recipe(ids: str, **fields: Any) -> MergeRecipe:
    return parse_merge({"ids": list(ids), **fields})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """a, b of one rank; b of other modules and scaling, c rank-stabilised, t of both tables."""
    make_adapter(tmp_path / "a", seed=1)
    make_adapter(tmp_path / "b", seed=2, lora_alpha=4, target_modules=list(ATTENTION))
    make_adapter(tmp_path / "c", seed=3, lora_alpha=6, use_rslora=True)
    tables = ["q_proj", "embed_tokens", "lm_head"]
    make_adapter(tmp_path / "t", seed=4, lora_alpha=4, target_modules=tables)
    return tmp_path


def by_peft(root: Path, merge: MergeRecipe) -> dict[str, Factors]:
    model = PeftModel.from_pretrained(make_model("llama"), str(root / "a"), adapter_name="a")
    for name in sorted(set(merge.ids) - {"a"}):
        model.load_adapter(str(root / name), adapter_name=name)
    model.base_model.add_weighted_adapter(  # pyright: ignore[reportCallIssue]
        list(merge.ids),
        list(merge.weights),
        "merged",
        combination_type=merge.strategy,
        density=merge.density,
        majority_sign_method=merge.sign_method,
    )
    model.save_pretrained(str(root / "peft"), selected_adapters=["merged"])
    config = json.loads((root / "peft/merged/adapter_config.json").read_text())
    config["use_rslora"] = False  # PEFT takes it over from the first, though nothing is left of it
    (root / "peft/merged/adapter_config.json").write_text(json.dumps(config))
    return read(root, "peft/merged")


def assert_same(ours: Mapping[str, Factors], theirs: Mapping[str, Factors]) -> None:
    assert ours.keys() == theirs.keys()
    for module, pair in theirs.items():
        assert ours[module].scaling == pair.scaling == 1
        assert torch.equal(ours[module].a, pair.a) and torch.equal(ours[module].b, pair.b)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"weights": [0.7, -0.3]},
        {"weights": [0.0, 2.0]},
        {"merge_strategy": "ties", "density": 0.3},
        {"merge_strategy": "ties", "density": 0.5, "majority_sign_method": "frequency"},
        {"merge_strategy": "ties", "weights": [0.7, -0.3]},
    ],
)
@pytest.mark.parametrize("ids", ["ab", "ac", "at"])
@pytest.mark.filterwarnings("ignore:The density")
def test_linear_and_ties_are_pefts(root: Path, ids: str, fields: dict[str, Any]) -> None:
    merge = recipe(ids, **fields)
    ours = merge_factors([read(root, name) for name in ids], merge, seed=0)
    assert_same(ours, by_peft(root, merge))


@pytest.mark.parametrize("method", ["total", "frequency"])
@pytest.mark.parametrize("strategy", ["dare_linear", "dare_ties"])
def test_dare_is_pefts_with_its_seed(root: Path, strategy: str, method: str) -> None:
    merge = recipe("ab", merge_strategy=strategy, density=0.4, majority_sign_method=method)
    target = path(0, "self_attn.q_proj")
    parts = [{target: read(root, name)[target]} for name in "ab"]
    ours = merge_factors(parts, merge, seed=5)[target]
    roots = torch.tensor([part[target].scaling for part in parts]).sqrt()
    function = getattr(merge_utils, strategy)
    more = (method,) if strategy == "dare_ties" else ()
    torch.manual_seed(5)
    a = function([part[target].a for part in parts], roots, 0.4, *more)
    b = function([part[target].b for part in parts], roots, 0.4, *more)
    assert torch.allclose(ours.a, a) and torch.allclose(ours.b, b)


def test_dare_keeps_the_expectation_and_the_density(root: Path) -> None:
    merge = recipe("ac", merge_strategy="dare_linear", density=0.4)
    parts = [read(root, name) for name in "ac"]
    target = path(1, "mlp.up_proj")
    draws = torch.stack([merge_factors(parts, merge, seed)[target].a for seed in range(300)])
    whole = merge_factors(parts, recipe("ac"), seed=0)[target].a
    assert (draws.mean(dim=0) - whole).abs().max() < 0.35 * whole.abs().max()
    assert abs((draws == 0).double().mean() - 0.6**2) < 0.02
    assert torch.equal(draws[7], merge_factors(parts, merge, seed=7)[target].a)


@pytest.mark.parametrize("strategy", ["linear", "ties", "dare_ties"])
def test_lower_ranks_are_filled_with_zeros(root: Path, strategy: str) -> None:
    """PEFT refuses them. What is filled in takes no part."""
    make_adapter(root / "d", seed=4, r=20, target_modules=["q_proj"])
    merge = recipe("ad", merge_strategy=strategy, density=1)
    low, high = parts = [read(root, name) for name in "ad"]
    merged = merge_factors(parts, merge, seed=0)
    q, up = merged[path(0, "self_attn.q_proj")], merged[path(0, "mlp.up_proj")]
    assert q.rank == up.rank == 20
    scale = high[path(0, "self_attn.q_proj")].scaling ** 0.5
    assert torch.allclose(q.a[8:], high[path(0, "self_attn.q_proj")].a[8:] * scale)
    own = low[path(0, "mlp.up_proj")]
    assert torch.allclose(up.b @ up.a, own.scaling * own.b @ own.a, atol=1e-6)


def test_one_adapter_merges_into_itself_scaled(root: Path) -> None:
    own = read(root, "c")
    merged = merge_factors([own], recipe("c", weights=[0.5], merge_strategy="ties"), seed=0)
    for module, pair in merged.items():
        expected = 0.5 * own[module].scaling * own[module].b @ own[module].a
        assert torch.allclose(pair.b @ pair.a, expected, atol=1e-6)


def test_the_files_are_read_back_as_they_were(root: Path) -> None:
    merged = merge_factors([read(root, name) for name in "at"], recipe("at"), seed=0)
    (root / "m").mkdir()
    for name, content in as_checkpoint(merged, base_of(root).sites).items():
        (root / "m" / name).write_bytes(content)
    assert_same(merged, read(root, "m"))
    config = json.loads((root / "m/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8 and len(config["target_modules"]) == 9
    PeftModel.from_pretrained(make_model("llama"), str(root / "m"))
