"""Tensors of the base model in an adapter's file: equal ones change nothing, others are refused."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from multilora.adapters.checkpoint.adapter import Adapter, read_checkpoint
from multilora.base_model import checkpoint
from multilora.base_model.checkpoint import CheckpointFiles
from multilora.base_model.config import NativeConfig
from multilora.errors import ErrorCode, RequestError
from support.engine.reading import pages_of, read_adapter
from support.tiny.adapters import make_adapter
from support.tiny.families import VOCAB, make_model, write_model

TABLES = ["embed_tokens", "lm_head"]
PREFIX = "base_model.model."


class Place(NamedTuple):
    base: Path
    plain: Path  # an adapter without copies
    copies: Path  # the same with both tables, as PEFT saves them
    variant: str


@pytest.fixture(scope="module", params=["llama", "llama-tied"], name="place")
def bases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp(request.param)
    base = write_model(make_model(request.param), root / "base")
    model = make_adapter(root / "plain", request.param)
    model.save_pretrained(str(root / "copies"), save_embedding_layers=True)
    return Place(base, root / "plain", root / "copies", request.param)


def read(place: Place, folder: Path, base: Path | None = None) -> Adapter:
    base = base or place.base
    sites = NativeConfig.from_folder(base).sites
    return read_adapter(folder, "mine", sites, torch.float32, 64, base_folder=base)


def numbers(place: Place, adapter: Adapter) -> torch.Tensor:
    """What the adapter's pages hold."""
    sites = NativeConfig.from_folder(place.base).sites
    return pages_of(adapter, sites, torch.float32).data


def refused(place: Place, folder: Path) -> str:
    with pytest.raises(RequestError) as caught:
        read(place, folder)
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert "\n" not in caught.value.message
    return caught.value.message


def changed(place: Place, folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """The plain adapter with more tensors."""
    folder.mkdir()
    whole = load_file(place.plain / "adapter_model.safetensors") | tensors
    save_file({name: t.contiguous() for name, t in whole.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_bytes((place.plain / CONFIG).read_bytes())
    return folder


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def test_copies_that_peft_saves_change_nothing(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "multilora.adapters.checkpoint.adapter")
    plain = read(place, place.plain)
    assert not caplog.messages
    names = load_file(place.copies / WEIGHTS)
    assert {PREFIX + "model.embed_tokens.weight", PREFIX + "lm_head.weight"} <= set(names)
    assert torch.equal(numbers(place, read(place, place.copies)), numbers(place, plain))
    (note,) = caplog.messages
    assert note.startswith("adapter 'mine' leaves as in the base model: ")
    assert "embed_tokens.weight" in note and "lm_head.weight" in note
    sites = NativeConfig.from_folder(place.base).sites
    assert len(read_checkpoint(place.copies, sites, 64, base_folder=place.base).factors) == 21
    with pytest.raises(RequestError, match="an embedding table"):
        read_checkpoint(place.copies, sites, 64)


def test_modules_to_save_that_were_never_trained(place: Place, tmp_path: Path) -> None:
    plain = read(place, place.plain)
    make_adapter(tmp_path / "both", place.variant, modules_to_save=TABLES)
    assert json.loads((tmp_path / "both" / CONFIG).read_text())["modules_to_save"] == TABLES
    assert torch.equal(numbers(place, read(place, tmp_path / "both")), numbers(place, plain))
    tensors = load_file(tmp_path / "both" / WEIGHTS)
    assert any("embed_tokens" in name for name in tensors)
    save_file({n: t for n, t in tensors.items() if "lora_" in n}, tmp_path / "both" / WEIGHTS)
    assert torch.equal(numbers(place, read(place, tmp_path / "both")), numbers(place, plain))


@pytest.mark.parametrize("table", TABLES)
def test_trained_tables_are_refused_with_how_many_rows(
    place: Place, tmp_path: Path, table: str
) -> None:
    model = make_adapter(tmp_path / "x", place.variant, modules_to_save=[table])
    (trained,) = (p for n, p in model.named_parameters() if f"{table}.modules_to_save" in n)
    with torch.no_grad():
        trained[[0, 5, VOCAB - 1]] += 0.01
    model.save_pretrained(str(tmp_path / "x"))
    message = refused(place, tmp_path / "x")
    assert f"{table}.weight' [128, 64] differs in 3 rows from " in message
    assert "merge the adapter into the base model and serve that" in message


def test_added_rows_are_counted(place: Place, tmp_path: Path) -> None:
    """`resize_token_embeddings` makes PEFT save both tables by itself."""
    rows = load_file(place.base / "model.safetensors")["model.embed_tokens.weight"]
    more = torch.cat((rows, torch.ones(4, 64)))
    folder = changed(place, tmp_path / "x", {PREFIX + "model.embed_tokens.weight": more})
    assert "[132, 64] differs in 4 rows from model.embed_tokens.weight" in refused(place, folder)
    fewer = {PREFIX + "model.embed_tokens.weight": rows[:100]}
    folder = changed(place, tmp_path / "y", fewer)
    assert "[100, 64] differs in 28 rows from model.embed" in refused(place, folder)
    other = {PREFIX + "model.embed_tokens.weight": rows[:, :32]}
    folder = changed(place, tmp_path / "z", other)
    assert "[128, 32] differs in 128 rows from model.embed" in refused(place, folder)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("copied", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_copies_in_another_dtype(
    place: Place, tmp_path: Path, stored: torch.dtype, copied: torch.dtype
) -> None:
    """Of the tensor in the base's files, or of the one that these were made of."""
    model: Any = make_model(place.variant)
    trained_on = model.get_input_embeddings().weight.detach().clone()
    base = write_model(model.to(stored), tmp_path / "base")
    table = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    table = (trained_on if copied.itemsize > stored.itemsize else table).to(copied)
    folder = changed(place, tmp_path / "x", {PREFIX + "model.embed_tokens.weight": table})
    assert read(place, folder, base).rank == 8
    table[7] *= 1.1
    folder = changed(place, tmp_path / "y", {PREFIX + "model.embed_tokens.weight": table})
    with pytest.raises(RequestError, match="differs in 1 rows"):
        read(place, folder, base)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.q_proj.base_layer.weight",
        "_fsdp_wrapped_module.model.layers.1.mlp.down_proj.base_layer.weight",
        "model.layers.2.input_layernorm.weight",
        "model.norm.modules_to_save.default.weight",
        "model.embed_tokens.original_module.weight",
        "lm_head.base_layer.weight",
    ],
)
def test_any_weight_of_the_base_may_be_copied(place: Place, tmp_path: Path, name: str) -> None:
    stem = name.removeprefix("_fsdp_wrapped_module.")
    for part in (".base_layer", ".modules_to_save.default", ".original_module"):
        stem = stem.replace(part, "")
    files = load_file(place.base / "model.safetensors")
    original = files.get(stem, files["model.embed_tokens.weight"])
    plain = read(place, place.plain)
    same = read(place, changed(place, tmp_path / "x", {PREFIX + name: original}))
    assert torch.equal(numbers(place, same), numbers(place, plain))
    message = refused(place, changed(place, tmp_path / "y", {PREFIX + name: original + 1}))
    was_copied = "base_layer" in name or "original_module" in name
    assert ("serve the base model that the adapter was trained on" in message) == was_copied
    assert f"differs in {len(original)} rows from" in message


def test_a_tensor_that_the_base_lacks_is_refused_as_before(place: Place, tmp_path: Path) -> None:
    extra = {PREFIX + "score.modules_to_save.weight": torch.ones(2, 64)}
    assert "is a fully trained copy" in refused(place, changed(place, tmp_path / "x", extra))
    packed = {PREFIX + "model.layers.0.mlp.up_proj.base_layer.weight": torch.ones(9, 1).byte()}
    assert "up_proj.base_layer.weight' is not lora_A or" in refused(
        place, changed(place, tmp_path / "y", packed)
    )


def test_a_copy_of_a_head_that_the_base_calls_otherwise(place: Place, tmp_path: Path) -> None:
    table = load_file(place.base / "model.safetensors")["model.embed_tokens.weight"]
    save_file({"transformer.wte.weight": table}, tmp_path / "model.safetensors")
    with CheckpointFiles(tmp_path) as files:
        assert files.find("lm_head.weight") is None


def test_tables_are_compared_a_few_rows_at_a_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = load_file(place.base / "model.safetensors")["model.embed_tokens.weight"]
    for compared in (1, 3 * 64, 128 * 64, 1 << 20):
        monkeypatch.setattr(checkpoint, "_COMPARED", compared)
        with CheckpointFiles(place.base) as files:
            assert files.differing_rows("model.embed_tokens.weight", table) == 0
            other = table.clone()
            other[[0, 2, 3, 126, 127], 5] += 1
            assert files.differing_rows("model.embed_tokens.weight", other) == 5
            assert files.differing_rows("model.norm.weight", torch.zeros(64)) == 64
            assert files.differing_rows("model.norm.weight", torch.tensor(1.0)) == 64


def test_a_base_that_has_left_the_disk(place: Place, tmp_path: Path) -> None:
    sites = NativeConfig.from_folder(place.base).sites
    with pytest.raises(RequestError, match="cannot be compared with these") as caught:
        read_adapter(place.copies, "mine", sites, torch.float32, 64, base_folder=tmp_path)
    assert caught.value.code is ErrorCode.UNAVAILABLE
