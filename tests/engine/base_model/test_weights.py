"""Loading weights: every way a checkpoint may be laid out, and each way it may be broken."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multilora.base_model import checkpoint
from multilora.base_model.config import NativeConfig
from multilora.base_model.weights import (
    DenseWeight,
    PackedWeight,
    SiteWeight,
    Weights,
    load_weights,
    packed,
)
from multilora.errors import StartupError
from support.tiny.base import HIDDEN, VOCAB, write_base

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Weights:
    return load_weights(folder, NativeConfig.from_folder(folder), dtype, CPU)


def test_a_large_model_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint, "_TOLD_SECONDS", 0.0)
    caplog.set_level("INFO")
    write_base(tmp_path)
    load(tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "reading the base model: 0 %" and len(said) > 4


def edit(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = {
        name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def shard(folder: Path) -> None:
    """Two shards and an index, as save_pretrained writes them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def numbers(weight: SiteWeight) -> torch.Tensor:
    """W, of whatever form."""
    assert isinstance(weight, DenseWeight | PackedWeight)
    return weight.multiply(torch.eye(weight.matrix.shape[1], dtype=weight.matrix.dtype)).T


def test_modules_with_one_input_are_fused(tmp_path: Path) -> None:
    weights = load(write_base(tmp_path))
    files = load_file(tmp_path / "model.safetensors")
    parts = [files[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(numbers(weights.sites["layers.1.qkv"]), torch.cat(parts))
    parts = [files[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(numbers(weights.sites["layers.0.gate_up"]), torch.cat(parts))
    assert weights.sites["layers.0.qkv"].bias is None


def test_shards_hold_the_same_model(tmp_path: Path) -> None:
    whole = load(write_base(tmp_path))
    shard(tmp_path)
    parts = load(tmp_path)
    assert torch.equal(whole.embed, parts.embed)
    assert whole.sites.keys() == parts.sites.keys() and len(whole.sites) == 8
    for name, weight in whole.sites.items():
        assert torch.equal(numbers(weight), numbers(parts.sites[name]))
    for one, other in zip(whole.norms, parts.norms, strict=True):
        assert torch.equal(one.attention, other.attention) and torch.equal(one.mlp, other.mlp)


@pytest.mark.parametrize("bias", [None, torch.arange(4.0)], ids=["without bias", "with bias"])
def test_a_packed_weight_multiplies_as_a_dense_one(bias: torch.Tensor | None) -> None:
    dense = DenseWeight(torch.randn(4, 6), bias)
    form = packed(dense)
    assert isinstance(form, PackedWeight)
    for rows in (1, 3, 40):
        x, residual = torch.randn(rows, 6), torch.randn(rows, 4)
        expected = dense.multiply(x)
        torch.testing.assert_close(form.multiply(x), expected)
        torch.testing.assert_close(form.multiply(x.T.contiguous().T), expected)
        sum_ = residual + expected
        form.add_to(residual, x)
        torch.testing.assert_close(residual, sum_)


def test_what_cannot_be_packed_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    double = DenseWeight(torch.ones(4, 4, dtype=torch.float64), None)
    assert packed(double) is double
    dense = DenseWeight(torch.ones(4, 4), None)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert packed(dense) is dense


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    write_base(tmp_path)
    edit(tmp_path, lambda t: t.update({name: value.to(stored) for name, value in t.items()}))
    expected = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"].to(wanted)
    weights = load(tmp_path, wanted)
    assert weights.embed.dtype == numbers(weights.sites["layers.0.down"]).dtype == wanted
    assert torch.equal(weights.embed, expected)


def test_tied_head_shares_the_embedding_unless_the_files_hold_another(tmp_path: Path) -> None:
    weights = load(write_base(tmp_path))
    assert weights.lm_head is weights.embed
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    weights = load(tmp_path)
    assert weights.lm_head is weights.embed
    edit(tmp_path, lambda t: t.update({"lm_head.weight": torch.ones(VOCAB, HIDDEN)}))
    assert torch.equal(load(tmp_path).lm_head, torch.ones(VOCAB, HIDDEN))


def test_unused_tensors_are_left_alone(tmp_path: Path) -> None:
    write_base(tmp_path)
    edit(
        tmp_path,
        lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}),
    )
    load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q_PROJ), f"no weight file has tensor {Q_PROJ}"),
        (
            lambda t: t.update({Q_PROJ: torch.ones(3, 4)}),
            rf"{Q_PROJ} has shape \[3, 4\] but .*\[64",
        ),
        (
            lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.int8)}),
            f"{Q_PROJ} is torch.int8, and conf",
        ),
    ],
)
def test_wrong_tensors(tmp_path: Path, change: Callable[[Tensors], object], message: str) -> None:
    edit(write_base(tmp_path), change)
    with pytest.raises(StartupError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_untied_head_must_be_there(tmp_path: Path) -> None:
    write_base(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(StartupError, match=r"no weight file has tensor lm_head\.weight"):
        load(tmp_path)


def test_broken_files(tmp_path: Path) -> None:
    write_base(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(StartupError, match=r"model\.safetensors: not a readable safetensors file"):
        load(tmp_path)
    weights.write_bytes(content)
    shard(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(StartupError, match=r"00002-of-00002\.safetensors is missing but"):
        load(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {Q_PROJ: "../elsewhere.safetensors"}}))
    with pytest.raises(StartupError, match="must be a file name"):
        load(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    write_base(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(StartupError, match=r"pickled weights \(pytorch_model\.bin\).*convert them"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(StartupError, match=r"neither model\.safetensors nor"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["consolidated.safetensors", "model-Q4_K_M.gguf"])
def test_other_forms_of_weights_are_named(tmp_path: Path, name: str) -> None:
    (write_base(tmp_path) / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(StartupError, match=rf"has its weights as {name}; .* transformers saves it"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_clone_without_its_large_files(tmp_path: Path, name: str) -> None:
    write_base(tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 1\n")
    with pytest.raises(StartupError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
        load(tmp_path)
