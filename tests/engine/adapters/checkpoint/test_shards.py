"""Adapters whose weights are in shards, as transformers writes them."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from multilora.adapters.checkpoint.adapter import Adapter
from multilora.adapters.checkpoint.checks import AdapterChecks
from multilora.adapters.files import missing_weights, weight_files
from multilora.adapters.naming.folders import AdapterFolders
from multilora.base_model.config import NativeConfig
from multilora.errors import RequestError
from support.engine.reading import pages_of, read_adapter
from support.tiny.families import make_model, write_model

NAMES = ["q_proj", "v_proj", "down_proj"]
SHARD = "adapter_model-00002-of-00003.safetensors"


@pytest.fixture(scope="module", name="root")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same adapter in one file and in three shards."""
    root = tmp_path_factory.mktemp("shards")
    model = make_model("llama")
    write_model(model, root / "base")
    model.add_adapter(LoraConfig(r=8, lora_alpha=16, target_modules=NAMES))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.08, generator=noise)
    model.save_pretrained(root / "whole")
    model.save_pretrained(root / "parts", max_shard_size="14KB")
    return root


@pytest.fixture(name="parts")
def copy_of_parts(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root / "parts", tmp_path / "parts"))


def read(root: Path, folder: Path) -> Adapter:
    sites = NativeConfig.from_folder(root / "base").sites
    return read_adapter(folder, "mine", sites, torch.float32, 64)


def refused(root: Path, folder: Path) -> str:
    """By those who read it and by those who look at its head."""
    base = root / "base"
    with pytest.raises(RequestError) as caught:
        read(root, folder)
    quick = AdapterChecks(NativeConfig.from_folder(base).sites, 64, base).refusal(folder)
    assert quick is not None and quick.message == caught.value.message
    return caught.value.message


def test_shards_are_the_adapter(root: Path, parts: Path) -> None:
    shards = weight_files(path.name for path in parts.iterdir())
    assert len(shards) == 3 and (parts / "model.safetensors.index.json").is_file()
    whole, read_parts = read(root, root / "whole"), read(root, parts)
    sites = NativeConfig.from_folder(root / "base").sites
    pools = [pages_of(adapter, sites, torch.float32) for adapter in (whole, read_parts)]
    assert torch.equal(pools[0].data, pools[1].data)
    assert whole.digest != read_parts.digest
    (parts / "model.safetensors.index.json").unlink()  # the names of the shards say enough
    assert read(root, parts).digest == read_parts.digest
    save_file({n: t + 1 for n, t in load_file(parts / SHARD).items()}, parts / SHARD)
    assert read(root, parts).digest != read_parts.digest
    base = root / "base"
    assert AdapterChecks(NativeConfig.from_folder(base).sites, 64, base).refusal(parts) is None


def test_one_file_comes_before_shards(root: Path, parts: Path) -> None:
    shutil.copy(root / "whole/adapter_model.safetensors", parts)
    assert read(root, parts).digest == read(root, root / "whole").digest


def test_what_is_wrong_names_the_shard(root: Path, parts: Path) -> None:
    (parts / SHARD).write_text("version https://git-lfs.github.com/spec/v1\n")
    assert refused(root, parts).startswith(f"{SHARD} is a Git LFS pointer")
    shutil.copy(parts / SHARD.replace("00002-", "00001-"), parts / SHARD)
    assert f"{SHARD} holds 'base_model." in refused(root, parts)
    (parts / SHARD).unlink()
    assert refused(root, parts).startswith(f"folder {parts} has no {SHARD}; save the adapter")


def test_which_file_is_missing() -> None:
    one, two, three = (SHARD.replace("00002-", f"0000{i}-") for i in (1, 2, 3))
    assert missing_weights([]) == missing_weights(["x.safetensors"]) == "adapter_model.safetensors"
    assert missing_weights([three, one, two]) == ""
    assert missing_weights([three, two]) == one and missing_weights([one]) == two
    assert missing_weights([one, two]) == three
    assert missing_weights(["adapter_model.safetensors", two]) == ""
    assert weight_files([three, "model.safetensors.index.json", one]) == [one, three]


def test_shards_in_the_adapters_directory(root: Path, parts: Path) -> None:
    folders = AdapterFolders(parts.parent)
    before = folders.scan()["parts"]
    (parts / SHARD).write_bytes((parts / SHARD).read_bytes() + b" ")
    assert folders.scan()["parts"] != before
    (parts / SHARD).unlink()
    (parts / SHARD).symlink_to(root / "parts" / SHARD)
    assert "parts" not in folders.scan()
    with pytest.raises(RequestError, match="a symlink leads out of the adapters directory"):
        folders.find("parts")
