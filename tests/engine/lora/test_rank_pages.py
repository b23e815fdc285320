"""Rank pages hold exactly the weight updates that PEFT computes, on the host and in the pool."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from multilora.adapters.checkpoint.adapter import Adapter
from multilora.base_model.config import NativeConfig
from multilora.base_model.sites import modules
from multilora.lora.rank_pages import RankPagePool, bytes_per_page
from support.engine.reading import pages_of, read_adapter
from support.tiny.adapters import ALL, make_adapter

PATTERNS: dict[str, Any] = {
    "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 20, "v_proj": 3, "^model.layers.1.mlp.*": 33},
    "alpha_pattern": {"q_proj": 5, r"model\.layers\.2\.mlp\.down_proj": 64},
}


def read(folder: Path, base: NativeConfig, dtype: torch.dtype = torch.float32) -> Adapter:
    return read_adapter(folder, "x", base.sites, dtype, max_rank=128)


def deltas(tensors: RankPagePool, pages: list[int], base: NativeConfig) -> dict[str, torch.Tensor]:
    """ΔW of every module from `pages`, by the definition of the layout."""
    found = {}
    for site in base.sites:
        a, b = tensors.a[site.name][pages], tensors.b[site.name][pages]
        columns = b.flatten(0, 1).split(site.slice_sizes, dim=-1)
        for slot, part in enumerate(site.slices):
            found[part.module] = columns[slot].T @ a[:, slot].flatten(0, 1)
    return found


def peft_deltas(model: Any, base: NativeConfig) -> dict[str, torch.Tensor]:
    found = {}
    for path, (site, part) in modules(base.sites).items():
        module = model.base_model.model.get_submodule(path)
        has = hasattr(module, "get_delta_weight")
        delta = module.get_delta_weight("default") if has else None
        zeros = torch.zeros(part.out_features, site.in_features)
        found[path] = zeros if delta is None else delta.detach()
    return found


@pytest.mark.parametrize(
    "config",
    [
        *({"r": r, "lora_alpha": 2 * r + 1} for r in (1, 8, 15, 16, 17, 33, 64, 128)),
        {"r": 24, "use_rslora": True},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["down_proj"], "layers_to_transform": [1]},
        {"target_modules": r".*\.[02]\..*(k|up)_proj"},
        {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
        {"r": 4, **PATTERNS},
        {"r": 4, **PATTERNS, "use_rslora": True},
        {"r": 4, "init_lora_weights": "orthogonal"},
    ],
    ids=str,
)
def test_pages_hold_pefts_delta_weights(
    tmp_path: Path, base: NativeConfig, config: dict[str, Any]
) -> None:
    expected = peft_deltas(make_adapter(tmp_path, **config), base)
    adapter = read(tmp_path, base)
    assert adapter.num_pages == math.ceil(adapter.rank / 16)
    weights = pages_of(adapter, base.sites, torch.float32)
    assert adapter.nbytes == weights.data.nbytes
    updated = [key for key, delta in expected.items() if delta.any()]
    assert adapter.modules == tuple(n for n in ALL if any(key.endswith(n) for key in updated))
    found = deltas(weights, list(range(adapter.num_pages)), base)
    assert updated
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_rank_is_the_largest_of_the_modules(tmp_path: Path, base: NativeConfig) -> None:
    make_adapter(tmp_path, r=4, rank_pattern={"up_proj": 37})
    adapter = read(tmp_path, base)
    assert (adapter.rank, adapter.num_pages) == (37, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_write_fills_the_given_pages_only(
    tmp_path: Path, base: NativeConfig, dtype: torch.dtype
) -> None:
    for name, seed, rank in (("first", 1, 40), ("second", 2, 16)):
        make_adapter(tmp_path / name, seed=seed, r=rank)
    first, second = (read(tmp_path / name, base, dtype) for name in ("first", "second"))
    pool = RankPagePool(base.sites, 6, dtype, "cpu")
    assert pool.nbytes == 6 * bytes_per_page(base.sites, dtype)
    assert first.nbytes == 3 * bytes_per_page(base.sites, dtype)
    pool.write((5, 0, 2), first.weights)
    pool.write([3], second.weights)
    own = deltas(pages_of(first, base.sites, dtype), [0, 1, 2], base)
    assert all(torch.equal(v, own[k]) for k, v in deltas(pool, [5, 0, 2], base).items())
    own = deltas(pages_of(second, base.sites, dtype), [0], base)
    assert all(torch.equal(v, own[k]) for k, v in deltas(pool, [3], base).items())
    assert not any(delta.any() for delta in deltas(pool, [1, 4], base).values())
    pool.write((1, 4, 3), first.weights)  # what stood in page 3 is gone, zero tail included
    stored = deltas(pool, [1, 4, 3], base)
    own = deltas(pages_of(first, base.sites, dtype), [0, 1, 2], base)
    assert all(torch.equal(v, own[k]) for k, v in stored.items())
    with pytest.raises(ValueError, match="3 pages"):
        pool.write((0, 1), first.weights)


def test_views_start_where_the_gpu_kernels_need_them(base: NativeConfig) -> None:
    pool = RankPagePool(base.sites, 3, torch.bfloat16, "cpu")
    for tensor in (*pool.a.values(), *pool.b.values()):
        assert tensor.is_contiguous() and tensor.storage_offset() * 2 % 16 == 0


def test_tensor_names_of_other_writers_are_understood(tmp_path: Path, base: NativeConfig) -> None:
    make_adapter(tmp_path)
    expected = pages_of(read(tmp_path, base), base.sites, torch.float32).data
    path = tmp_path / "adapter_model.safetensors"
    plain = load_file(path)
    renames = (
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.removeprefix("base_model.model.model."),
        lambda name: "module." + name,
        lambda name: name.replace("model.layers", "model.language_model.layers"),
        lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
    )
    for rename in renames:
        save_file({rename(name): tensor for name, tensor in plain.items()}, path)
        found = pages_of(read(tmp_path, base), base.sites, torch.float32).data
        assert torch.equal(found, expected)


def test_the_key_follows_the_content(tmp_path: Path, base: NativeConfig) -> None:
    make_adapter(tmp_path / "a")
    make_adapter(tmp_path / "b", seed=2)
    make_adapter(tmp_path / "c", lora_alpha=17)
    make_adapter(tmp_path / "d")
    keys = [read(tmp_path / name, base).key for name in "abcd"]
    assert keys[0] == keys[3] and len(set(keys)) == 3
    assert all(key.startswith("x@") and len(key) == 18 for key in keys)
