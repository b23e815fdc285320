"""Loading weights: every way a checkpoint may be laid out, and each way it may be broken."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multilora.base_model import checkpoint, weights
from multilora.base_model.config import NativeConfig
from multilora.base_model.weights import (
    DenseWeight,
    HalfWeight,
    PackedWeight,
    SiteWeight,
    Weights,
    load_weights,
    packed,
)
from multilora.errors import StartupError
from support.tiny.base import HIDDEN, INTERMEDIATE, VOCAB, write_base

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


def test_progress_is_told_every_two_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    seconds = iter(range(100))
    items = checkpoint.watched(range(10), "reading", lambda: float(next(seconds)))
    assert list(items) == list(range(10))
    assert caplog.messages == [f"reading: {done} %" for done in (10, 30, 50, 70, 90)]


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


def numbers(weight: SiteWeight, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """W, of whatever form."""
    return weight.multiply(torch.eye(columns, dtype=dtype)).T


def test_modules_with_one_input_are_fused(tmp_path: Path) -> None:
    weights = load(write_base(tmp_path))
    files = load_file(tmp_path / "model.safetensors")
    parts = [files[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(numbers(weights.sites["layers.1.qkv"], HIDDEN), torch.cat(parts))
    parts = [files[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(numbers(weights.sites["layers.0.gate_up"], HIDDEN), torch.cat(parts))
    qkv = weights.sites["layers.0.qkv"]
    assert isinstance(qkv, PackedWeight) and qkv.bias is None


def test_shards_hold_the_same_model(tmp_path: Path) -> None:
    whole = load(write_base(tmp_path))
    shard(tmp_path)
    parts = load(tmp_path)
    assert torch.equal(whole.embed, parts.embed)
    assert whole.sites.keys() == parts.sites.keys() and len(whole.sites) == 8
    for site in NativeConfig.from_folder(tmp_path).layer_sites:
        one, other = (numbers(w.sites[site.name], site.in_features) for w in (whole, parts))
        assert torch.equal(one, other)
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


def halves(*shape: int, size: float = 0.02) -> torch.Tensor:
    """float32, as from a checkpoint in bfloat16."""
    return (torch.randn(shape) * size).bfloat16().float()


@pytest.mark.parametrize("size", [1e-30, 1e-7, 0.02, 1e6], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_half_weight_multiplies_as_a_dense_one(
    dtype: torch.dtype, size: float, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded as sums in float32 are, and then to the dtype."""
    monkeypatch.setattr(weights, "has_instructions", lambda _: False)
    matrix = halves(70, 50, size=size)
    bias = halves(70, size=size) if has_bias else None
    form = packed(DenseWeight(matrix.to(dtype), None if bias is None else bias.to(dtype)))
    assert isinstance(form, HalfWeight)
    x, step = halves(40, 50, size=1), max(torch.finfo(dtype).eps, 2**-20)
    wanted = x.double() @ matrix.double().T + (0 if bias is None else bias.double())
    for rows in (0, 1, 3, 40):
        found = form.multiply(x[:rows].to(dtype))
        assert found.dtype == dtype
        atol = 4 * step * size
        torch.testing.assert_close(found.double(), wanted[:rows], rtol=step, atol=atol)
        residual = torch.ones(rows, 70, dtype=dtype)
        form.add_to(residual, x[:rows].to(dtype))
        assert torch.equal(residual, found + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_of_a_half_weight_does_not_depend_on_the_other_rows(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the order of sums in float32. Rounded to 16 bits that is hardly ever seen."""
    monkeypatch.setattr(weights, "has_instructions", lambda _: False)
    form = packed(DenseWeight(halves(96, 300).to(dtype), None))
    assert isinstance(form, HalfWeight)
    x = torch.randn(64, 300).to(dtype)
    alone = torch.cat([form.multiply(x[row : row + 1]) for row in range(64)])
    for rows in (2, 7, 16, 64):
        found = form.multiply(x[:rows])
        if dtype == torch.float32:
            torch.testing.assert_close(found, alone[:rows], rtol=0, atol=2e-6)
        else:
            assert (found != alone[:rows]).double().mean() < 0.01


def test_which_numbers_16_bits_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 and bfloat16 of any size; not float32, nor what a processor multiplies itself."""
    small = torch.tensor([[1.0, 2.0**-24], [3 * 2.0**-24, 5 * 2.0**-24]])
    form = packed(DenseWeight(small, None))
    assert isinstance(form, HalfWeight) and torch.equal(numbers(form, 2), small)
    for size in (2.0**-90, 2.0**100):
        form = packed(DenseWeight(small * size, None))
        assert isinstance(form, HalfWeight) and torch.equal(numbers(form, 2), small * size)
    assert isinstance(packed(DenseWeight(torch.zeros(3, 2), None)), HalfWeight)
    for odd in (torch.randn(4, 4), torch.full((4, 4), math.inf), torch.full((4, 4), math.nan)):
        assert isinstance(packed(DenseWeight(odd, None)), PackedWeight)
    monkeypatch.setattr(weights, "has_instructions", lambda _: True)
    assert not isinstance(packed(DenseWeight(small.bfloat16(), None)), HalfWeight)


def test_what_cannot_be_packed_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    double = DenseWeight(torch.ones(4, 4, dtype=torch.float64), None)
    assert packed(double) is double
    dense = DenseWeight(torch.randn(4, 4), None)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert packed(dense) is dense
    monkeypatch.setattr(torch.backends.quantized, "engine", "qnnpack")  # as without FBGEMM
    half = DenseWeight(halves(4, 4), None)
    assert packed(half) is half


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    write_base(tmp_path)
    edit(tmp_path, lambda t: t.update({name: value.to(stored) for name, value in t.items()}))
    expected = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"].to(wanted)
    weights = load(tmp_path, wanted)
    down = numbers(weights.sites["layers.0.down"], INTERMEDIATE, wanted)
    assert weights.embed.dtype == down.dtype == wanted
    assert torch.equal(weights.embed, expected)


def test_tied_head_shares_the_embedding_unless_the_files_hold_another(tmp_path: Path) -> None:
    weights = load(write_base(tmp_path))
    assert weights.lm_head is weights.embed
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    weights = load(tmp_path)
    assert weights.lm_head is weights.embed
    edit(tmp_path, lambda t: t.update({"lm_head.weight": torch.ones(VOCAB, HIDDEN)}))
    assert torch.equal(load(tmp_path).lm_head, torch.ones(VOCAB, HIDDEN))


def test_unused_tensors_are_left_alone_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    implied = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    edit(write_base(tmp_path), lambda t: t.update(implied))
    load(tmp_path)
    assert not caplog.messages, "RoPE is known without it"
    names = [f"model.layers.{layer}.self_attn.gate.weight" for layer in (0, 10)]
    edit(tmp_path, lambda t: t.update({name: torch.ones(1) for name in (*names, "mtp.weight")}))
    load(tmp_path)
    named = "model.layers.*.self_attn.gate.weight, mtp.weight"
    assert caplog.messages == [f"{tmp_path}: 3 tensors are not used: {named}"]
    caplog.clear()
    edit(tmp_path, lambda t: t.update({name: torch.ones(1) for name in "abcd"}))
    load(tmp_path)
    named = "model.layers.*.self_attn.gate.weight, a, b, c and 2 other names"
    assert caplog.messages == [f"{tmp_path}: 7 tensors are not used: {named}"]


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
