"""A base model of the Hub: of its repository what is served comes, and nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from multilora.base_model.config import NativeConfig
from multilora.base_model.weights import load_weights
from multilora.config import EngineConfig
from multilora.errors import StartupError
from multilora.startup.base_folder import base_folder
from support.engine.downloads import use_hub
from support.fake.hub import HubServer
from support.tiny.families import make_model, write_model

CPU = (torch.float32, torch.device("cpu"))
OTHERS = (
    "consolidated.safetensors", "consolidated.00.pth", "pytorch_model.bin", "tf_model.h5",
    "pytorch_model-00001-of-00002.bin", "model-Q4_K_M.gguf", "model.fp16.safetensors",
    "model-00003-of-00003.safetensors", "README.md", "original/consolidated.00.pth",
    "original/params.json", "original/model.safetensors", "onnx/model.onnx", "onnx/config.json",
    "openvino/model.safetensors", "runs/events.out", "nested/deeply/config.json",
)  # fmt: skip
TEXT = ("config.json", "generation_config.json", "chat_template.jinja")
TEMPLATES = "additional_chat_templates/rag.jinja"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture(name="repository")
def sharded_base(tmp_path: Path) -> Path:
    """Two shards with their index, among all that repositories hold beside them."""
    folder = write_model(make_model("mistral"), tmp_path / "hub/org/base")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: SHARDS[number % 2] for number, name in enumerate(sorted(tensors))}
    for shard in SHARDS:
        save_file({n: t for n, t in tensors.items() if places[n] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for name in (*OTHERS, TEMPLATES, "chat_template.jinja"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    return folder


@pytest.fixture(name="hub")
def served(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        yield server


def fetch() -> Path:
    return base_folder(EngineConfig(model_id="org/base"))


def brought(hub: HubServer) -> set[str]:
    return {path.removeprefix("org/base/") for path in hub.sent}


def test_only_the_files_that_the_index_names_are_downloaded(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch()
    assert brought(hub) == {*TEXT, TEMPLATES, INDEX, *SHARDS}
    base = NativeConfig.from_folder(folder)
    assert load_weights(folder, base, *CPU).embed.shape == (128, 64)
    before = hub.sent.copy()
    assert fetch() == folder and hub.sent == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch() == folder


def test_a_single_file_makes_the_shards_needless(hub: HubServer, repository: Path) -> None:
    """As in transformers."""
    whole = {n: t for shard in SHARDS for n, t in load_file(repository / shard).items()}
    save_file(whole, repository / "model.safetensors")
    folder = fetch()
    assert brought(hub) == {*TEXT, TEMPLATES, INDEX, "model.safetensors"}
    load_weights(folder, NativeConfig.from_folder(folder), *CPU)


def test_a_repository_without_such_weights_says_what_is_served(
    hub: HubServer, repository: Path
) -> None:
    for name in (INDEX, *SHARDS):
        (repository / name).unlink()
    folder = fetch()
    assert brought(hub) == {*TEXT, TEMPLATES}
    with pytest.raises(StartupError, match="as transformers saves it, in safetensors"):
        load_weights(folder, NativeConfig.from_folder(folder), *CPU)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "original/model.safetensors"])
def test_an_index_cannot_name_other_places(hub: HubServer, repository: Path, name: str) -> None:
    (repository / INDEX).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(StartupError, match="must be a file name"):
        fetch()
