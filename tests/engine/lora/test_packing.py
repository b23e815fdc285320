"""An adapter's pages are its factors, bit by bit, whatever its files look like."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multilora.adapters.checkpoint.adapter import AdapterReader
from multilora.base_model.config import NativeConfig
from multilora.errors import RequestError
from multilora.lora import rank_pages
from support.engine.reading import pages_of, read_adapter
from support.tiny.adapters import make_adapter

Tensors = dict[str, torch.Tensor]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module", name="good")
def good_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two pages; modules have other ranks, or none."""
    folder = tmp_path_factory.mktemp("good")
    ranks = {"q_proj": 5, "up_proj": 16, "down_proj": 33}
    names = ["q_proj", "v_proj", "up_proj", "down_proj"]
    make_adapter(folder, r=20, lora_alpha=7, rank_pattern=ranks, target_modules=names)
    return folder


def written(good: Path, folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((good / "adapter_config.json").read_bytes())
    save_file(change(load_file(good / WEIGHTS)), folder / WEIGHTS)
    return folder


def expected(folder: Path, base: NativeConfig, dtype: torch.dtype) -> Tensors:
    """a and b of each site, as rank_pages defines them."""
    tensors = load_file(folder / WEIGHTS)
    config = json.loads((folder / "adapter_config.json").read_text())
    pages = 3
    found: Tensors = {}
    for site in base.sites:
        a = torch.zeros(pages * 16, len(site.slices), site.in_features, dtype=dtype)
        b = torch.zeros(pages * 16, site.out_features, dtype=dtype)
        columns = b.split(site.slice_sizes, dim=-1)
        for slot, part in enumerate(site.slices):
            name = f"base_model.model.{part.module}.lora_A.weight"
            if name in tensors:
                factor = tensors[name]
                rank = config["rank_pattern"].get(part.short_name, config["r"])
                a[: len(factor), slot] = factor
                other = tensors[name.replace("lora_A", "lora_B")].T.float()
                columns[slot][: len(factor)] = other * (config["lora_alpha"] / rank)
        paged = a.view(pages, 16, len(site.slices), site.in_features)
        found[f"{site.name}.a"] = paged.transpose(1, 2).contiguous()
        found[f"{site.name}.b"] = b.view(pages, 16, site.out_features)
    return found


def packed(folder: Path, base: NativeConfig, dtype: torch.dtype) -> Tensors:
    pool = pages_of(read_adapter(folder, "x", base.sites, dtype, 64), base.sites, dtype)
    return {f"{name}.a": a for name, a in pool.a.items()} | {
        f"{name}.b": b for name, b in pool.b.items()
    }


def same(found: Tensors, wanted: Tensors) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(tensor, wanted[name]) for name, tensor in found.items()
    )


def mixed(tensors: Tensors) -> Tensors:
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    return {name: t.to(dtypes[index % 4]) for index, (name, t) in enumerate(tensors.items())}


@pytest.mark.parametrize("of_pool", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("piece", [1, 5000, 4 << 20])
@pytest.mark.parametrize("of_file", ["float32", "float16", "bfloat16", "float64", "mixed"])
def test_dtypes_and_pieces(
    good: Path,
    base: NativeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of_file: str,
    piece: int,
    of_pool: torch.dtype,
) -> None:
    monkeypatch.setattr(rank_pages, "PIECE_BYTES", piece)
    change = mixed if of_file == "mixed" else lambda them: {
        name: tensor.to(getattr(torch, of_file)) for name, tensor in them.items()
    }  # fmt: skip
    folder = written(good, tmp_path / "x", change)
    assert same(packed(folder, base, of_pool), expected(folder, base, of_pool))


@pytest.mark.parametrize("spaces", [1, 2, 3, 4])
def test_numbers_that_are_not_aligned(
    good: Path, base: NativeConfig, tmp_path: Path, spaces: int
) -> None:
    """Behind a head of any length, as other writers leave it."""
    folder = written(good, tmp_path / "x", lambda tensors: tensors)
    content = (folder / WEIGHTS).read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    head = content[8:size] + b" " * spaces
    (folder / WEIGHTS).write_bytes(len(head).to_bytes(8, "little") + head + content[size:])
    assert same(packed(folder, base, torch.float32), expected(folder, base, torch.float32))


def test_adapters_of_one_training_share_a_plan_and_nothing_else(
    good: Path, base: NativeConfig, tmp_path: Path
) -> None:
    reader = AdapterReader(base.sites, torch.float32, 64)
    once = written(good, tmp_path / "once", lambda tensors: tensors)
    twice = written(good, tmp_path / "twice", lambda them: {n: 2 * t for n, t in them.items()})
    bad = written(good, tmp_path / "bad", lambda them: {n: t / 0 for n, t in them.items()})
    other = written(good, tmp_path / "other", lambda tensors: tensors)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    first, second, third = (reader.read(folder, "x") for folder in (once, twice, other))
    assert first.weights.plan is second.weights.plan is not third.weights.plan
    for adapter, folder in ((first, once), (second, twice), (third, other)):
        pool = pages_of(adapter, base.sites, torch.float32)
        wanted = expected(folder, base, torch.float32)
        assert all(torch.equal(a, wanted[f"{name}.a"]) for name, a in pool.a.items())
        assert all(torch.equal(b, wanted[f"{name}.b"]) for name, b in pool.b.items())
    with pytest.raises(RequestError, match=r"lora_[AB].weight' holds values that are not finite"):
        reader.read(bad, "x")


@pytest.mark.parametrize("entries", ["overlap", "gap", "size", "dtype"])
def test_heads_that_do_not_fit_the_numbers(
    good: Path, base: NativeConfig, tmp_path: Path, entries: str
) -> None:
    folder = written(good, tmp_path / "x", lambda tensors: tensors)
    content = (folder / WEIGHTS).read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    head = json.loads(content[8:size])
    last = max((name for name in head if name != "__metadata__"), key=lambda name: head[name][
        "data_offsets"])  # fmt: skip
    start, end = head[last]["data_offsets"]
    if entries == "overlap":
        head[last]["data_offsets"] = [start - 4, end - 4]
    elif entries == "gap":
        head[last]["data_offsets"] = [start + 4, end + 4]
    elif entries == "size":
        head[last]["shape"] = [1]
    else:
        head[last]["dtype"] = "F4"
    changed = json.dumps(head).encode()
    (folder / WEIGHTS).write_bytes(len(changed).to_bytes(8, "little") + changed + content[size:])
    with pytest.raises(RequestError, match=f"{WEIGHTS} is corrupt or cut short"):
        read_adapter(folder, "x", base.sites, torch.float32, 64)
