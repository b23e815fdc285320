"""Adapters of embed_tokens and lm_head: how their tensors are called, tied, and found at start."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from multilora.adapters.checkpoint.checks import AdapterChecks, adapted_places
from multilora.base_model.config import NativeConfig
from multilora.errors import RequestError
from support.engine.reading import pages_of, read_adapter
from support.tiny.base import HIDDEN, TABLES, VOCAB, write_adapter, write_base

BOTH = tuple(TABLES)
EMBEDDING = "base_model.model.model.embed_tokens."
HEAD = "base_model.model.lm_head."


@pytest.fixture(scope="module", name="base_folder")
def tied_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(name="base")
def base_with_places(base_folder: Path) -> NativeConfig:
    return NativeConfig.from_folder(base_folder).with_places(BOTH)


def change(
    folder: Path,
    more: Mapping[str, torch.Tensor] | None = None,
    remove: str = "",
    rename: tuple[str, str] = ("", ""),
) -> Path:
    """Add tensors of an adapter by their names, remove and rename others by parts of theirs."""
    path = folder / "adapter_model.safetensors"
    tensors = {
        name.replace(*rename) if rename[0] else name: tensor
        for name, tensor in load_file(path).items()
        if not remove or remove not in name
    }
    save_file(tensors | dict(more or {}), path)
    return folder


def configure(folder: Path, **fields: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def data_of(folder: Path, base: NativeConfig) -> torch.Tensor:
    adapter = read_adapter(folder, "x", base.sites, torch.float32, 64)
    return pages_of(adapter, base.sites, torch.float32).data


def refused(folder: Path, base: NativeConfig, base_folder: Path) -> str:
    """Whether it is read or only looked at."""
    with pytest.raises(RequestError) as caught:
        data_of(folder, base)
    looked = AdapterChecks(base.sites, 64, base_folder).refusal(folder)
    assert looked is not None and looked.message == caught.value.message
    return looked.message


def test_pages_hold_the_update_of_both_tables(tmp_path: Path, base: NativeConfig) -> None:
    folder = write_adapter(tmp_path, seed=1, rank=20, tables=BOTH)
    tensors = load_file(folder / "adapter_model.safetensors")
    adapter = read_adapter(folder, "x", base.sites, torch.float32, 64)
    assert adapter.modules[0] == "embed_tokens" and adapter.modules[-1] == "lm_head"
    assert len(adapter.modules) == 9 and adapter.num_pages == 2
    pool = pages_of(adapter, base.sites, torch.float32)
    for name, path in (("embed_tokens", EMBEDDING), ("lm_head", HEAD)):
        a, b = (value for key, value in sorted(tensors.items()) if key.startswith(path))
        ours = pool.b[name].flatten(0, 1).T @ pool.a[name][:, 0].flatten(0, 1)
        torch.testing.assert_close(ours, 2 * b @ a)


def test_the_name_that_tinker_gives_the_head(
    tmp_path: Path, base: NativeConfig, base_folder: Path
) -> None:
    folder = write_adapter(tmp_path, seed=1, tables=["lm_head"])
    before = data_of(folder, base)
    change(folder, rename=(HEAD, "base_model.model.model.unembed_tokens."))
    assert torch.equal(data_of(folder, base), before)
    again = torch.ones(8, HIDDEN)
    change(folder, {f"{HEAD}lora_A.weight": again})
    assert "are for the same module" in refused(folder, base, base_folder)


@pytest.mark.parametrize("kept", BOTH)
def test_a_tied_update_is_that_of_the_other_table_transposed(
    kept: str, tmp_path: Path, base: NativeConfig
) -> None:
    """As PEFT makes it when it loads a file that lacks one of the two."""
    folder = write_adapter(tmp_path, seed=1, rank=20, tables=[kept])
    configure(folder, ensure_weight_tying=True, alpha_pattern={"lm_head": 20, "embed_tokens": 60})
    adapter = read_adapter(folder, "x", base.sites, torch.float32, 64)
    assert {"embed_tokens", "lm_head"} <= set(adapter.modules)
    pool = pages_of(adapter, base.sites, torch.float32)
    deltas = {
        name: pool.b[name].flatten(0, 1).T @ pool.a[name][:, 0].flatten(0, 1) for name in BOTH
    }
    assert deltas["lm_head"].any()
    torch.testing.assert_close(deltas["embed_tokens"], 3 * deltas["lm_head"].T)
    without = base.with_places([kept])
    other = next(name for name in BOTH if name != kept)
    with pytest.raises(RequestError, match=f"makes this LoRA on {other}, for which the pages"):
        data_of(folder, without)


def test_what_a_file_has_of_both_tied_tables_counts(tmp_path: Path, base: NativeConfig) -> None:
    folder = write_adapter(tmp_path, seed=1, tables=BOTH)
    before = data_of(folder, base)
    configure(folder, ensure_weight_tying=True)
    assert torch.equal(data_of(folder, base), before)


def test_a_look_tells_equal_tensors_that_are_tied_from_others(
    tmp_path: Path, base: NativeConfig, base_folder: Path
) -> None:
    free, tied = (write_adapter(tmp_path / name, seed=1, tables=["embed_tokens"]) for name in "ft")
    configure(tied, ensure_weight_tying=True)
    checks = AdapterChecks(base.with_places(["embed_tokens"]).sites, 64, base_folder)
    assert checks.refusal(free) is None
    refusal = checks.refusal(tied)
    assert refusal is not None and "makes this LoRA on lm_head" in refusal.message


def test_tables_that_are_not_tied_stay_apart(tmp_path: Path, base_folder: Path) -> None:
    folder = write_adapter(tmp_path, seed=1, tables=["embed_tokens"])
    configure(folder, ensure_weight_tying=True)
    config = json.loads((base_folder / "config.json").read_text())
    untied = tmp_path / "untied"
    untied.mkdir()
    (untied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    base = NativeConfig.from_folder(untied).with_places(BOTH)
    adapter = read_adapter(folder, "x", base.sites, torch.float32, 64)
    assert "lm_head" not in adapter.modules


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({EMBEDDING + "lora_embedding_A": [8, VOCAB + 2]}, "needs [8, 128]; use the base model"),
        ({EMBEDDING + "lora_embedding_B": [HIDDEN + 1, 8]}, "needs [64, 8]; use the base model"),
        ({HEAD + "lora_B.weight": [VOCAB + 2, 8]}, "needs [128, 8]; use the base model"),
        ({EMBEDDING + "lora_A.weight": [8, VOCAB]}, "is not lora_A or lora_B of embed_tokens, q_"),
        ({HEAD + "lora_embedding_A": [8, HIDDEN]}, "is not lora_A or lora_B of embed_tokens, q_"),
        ({HEAD + "lora_unembed_B": [8, HIDDEN]}, "is not lora_A or lora_B of embed_tokens, q_"),
        ({EMBEDDING + "lora_embedding_A.default": [8, VOCAB]}, "are for the same module"),
        ({EMBEDDING + "lora_magnitude_vector": [HIDDEN]}, "is a DoRA magnitude"),
    ],
    ids=str,
)
def test_wrong_tensors_of_tables(
    more: dict[str, list[int]],
    reason: str,
    tmp_path: Path,
    base: NativeConfig,
    base_folder: Path,
) -> None:
    folder = write_adapter(tmp_path, seed=1, tables=BOTH)
    change(folder, {name: torch.ones(shape) for name, shape in more.items()})
    assert reason in refused(folder, base, base_folder)


@pytest.mark.parametrize("half", ["lora_embedding_A", "lora_embedding_B"])
def test_half_of_an_embedding(
    half: str, tmp_path: Path, base: NativeConfig, base_folder: Path
) -> None:
    folder = change(write_adapter(tmp_path, seed=1, tables=BOTH), remove=half)
    assert "beside it; save the trained adapter again" in refused(folder, base, base_folder)


@pytest.mark.parametrize("tables", [(), ("embed_tokens",), ("lm_head",), BOTH])
def test_tables_are_found_by_the_tensors_alone(
    tables: tuple[str, ...], tmp_path: Path, base_folder: Path
) -> None:
    folder = write_adapter(tmp_path, seed=1, tables=tables)
    table = load_file(base_folder / "model.safetensors")["model.embed_tokens.weight"]
    change(folder, {EMBEDDING + "base_layer.weight": table})  # as PEFT saves it
    base = NativeConfig.from_folder(base_folder)
    assert adapted_places(folder, base, 64, base_folder) == set(tables)
    change(folder, rename=(HEAD, "base_model.model.model.unembed_tokens."))
    assert adapted_places(folder, base, 64, base_folder) == set(tables)
    if tables:
        assert adapted_places(folder, base, 4, base_folder) == set(BOTH), "the reason comes later"
