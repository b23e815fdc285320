"""Every adapter that cannot be served exactly is refused with its reason and a remedy.

Each case is a good adapter, saved by PEFT, with one thing changed in its files.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from multilora.adapters.checkpoint.adapter import Adapter, read_checkpoint
from multilora.base_model.config import NativeConfig
from multilora.errors import ErrorCode, RequestError
from support.engine.reading import pages_of, read_adapter
from support.tiny.adapters import make_adapter

Tensors = dict[str, torch.Tensor]
LAYER = "base_model.model.model.layers."
Q_A, Q_B = (LAYER + f"0.self_attn.q_proj.lora_{half}.weight" for half in "AB")


@pytest.fixture(scope="module", name="good")
def good_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    make_adapter(folder)
    return folder


@pytest.fixture(name="folder")
def copy_of_good(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "adapter"))


def read(folder: Path, base: NativeConfig, dtype: torch.dtype = torch.float32) -> Adapter:
    return read_adapter(folder, "mine", base.sites, dtype, max_rank=64)


def refused(folder: Path, base: NativeConfig, dtype: torch.dtype = torch.float32) -> str:
    with pytest.raises(RequestError) as caught:
        read(folder, base, dtype)
    assert caught.value.code is ErrorCode.INVALID_ARG
    message = caught.value.message
    assert "mine" not in message and "\n" not in message  # the caller names the adapter
    return message


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_the_unchanged_adapter_is_accepted(folder: Path, base: NativeConfig) -> None:
    assert read(folder, base).rank == 8


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"r": 16}, "lora_A.weight' has rank 8, but adapter_config.json says 16"),
        ({"rank_pattern": {"v_proj": 4}}, "v_proj.lora_A.weight' has rank 8, but"),
        ({"use_dora": True}, "use_dora is set; DoRA"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    ],
    ids=str,
)
def test_config_fields(
    folder: Path, base: NativeConfig, fields: dict[str, Any], reason: str
) -> None:
    change_config(folder, **fields)
    assert reason in refused(folder, base)


def test_the_config_of_an_old_peft_is_enough(folder: Path, base: NativeConfig) -> None:
    before = pages_of(read(folder, base), base.sites, torch.float32).data
    old = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "fan_in_fan_out": False}
    (folder / "adapter_config.json").write_text(json.dumps(old))
    after = pages_of(read(folder, base), base.sites, torch.float32).data
    assert torch.equal(after, before)


@pytest.mark.parametrize("start", ["whole", "dummy"])
def test_a_save_of_one_zero3_process(folder: Path, base: NativeConfig, start: str) -> None:
    """Every tensor is empty, and those that come first may be no LoRA at all."""

    def empty(tensors: Tensors) -> None:
        tensors.update({name: torch.zeros(0) for name in tensors})
        if start == "dummy":
            tensors["base_model.model.lm_head.weight"] = torch.zeros(0)

    change_tensors(folder, empty)
    message = refused(folder, base)
    assert "has shape [0]: it is what one process of DeepSpeed ZeRO-3" in message
    assert "stage3_gather_16bit_weights_on_model_save" in message


def set_value(tensors: Tensors, name: str, value: float) -> None:
    tensors[name][0, 0] = value


CHANGED_TENSORS: list[tuple[Callable[[Tensors], object], str]] = [
    (lambda t: t.pop(Q_B), "q_proj.lora_A.weight' has no lora_B beside it"),
    (lambda t: t.pop(Q_A), "q_proj.lora_B.weight' has no lora_A beside it"),
    (lambda t: t.clear(), "holds no tensors"),
    (lambda t: t.update({Q_A: t[Q_A][:, :-1].contiguous()}), "has shape [8, 63], but the base "
     "model needs [8, 64]"),
    (lambda t: t.update({Q_B: t[Q_B][:-2].contiguous()}), "[62, 8], but the base model needs "
     "[64, 8]"),
    (lambda t: t.update({Q_B: t[Q_B][:, :4].contiguous()}), "[64, 4], but the base model needs "
     "[64, 8]"),
    (lambda t: t.update({Q_A: torch.zeros(0, 64), Q_B: torch.zeros(64, 0)}), "it is what "
     "one process of DeepSpeed ZeRO-3 or FSDP held; gather"),
    (lambda t: t.update({Q_A: torch.zeros(100)}), "has shape [100]: it is what one process"),
    (lambda t: set_value(t, Q_A, float("nan")), "q_proj.lora_A.weight' holds values that are not"),
    (lambda t: set_value(t, Q_B, float("-inf")), "q_proj.lora_B.weight' holds values that are not"),
    (lambda t: t.update({Q_A: t[Q_A].to(torch.int8)}), "has dtype torch.int8"),
    (lambda t: t.update({Q_A: t[Q_A].to(torch.float8_e4m3fn)}), "has dtype torch.float8_e4m3fn"),
    (lambda t: t.update({Q_A.replace(".0.", ".3."): t.pop(Q_A)}), "is for layer 3, but the base "
     "model has layers 0 to 2"),
    (lambda t: t.update({Q_A.replace("weight", "other.weight"): t[Q_A] + 1}), "the same module"),
    (lambda t: t.update({Q_A.replace("q_proj", "qkv_proj"): t.pop(Q_A)}), "qkv_proj.lora_A.weight' "
     "is not lora_A or lora_B of q_proj"),
    (lambda t: t.update({"base_model.model.model.vision.layers.0.self_attn.q_proj.lora_A.weight":
                         torch.zeros(8, 64)}), "is not lora_A or lora_B of"),
    (lambda t: t.update({Q_A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(64)}),
     "is a DoRA magnitude"),
    (lambda t: t.update({Q_B.replace("weight", "bias"): torch.ones(64)}), "is a trained bias"),
    (lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A":
                         torch.ones(8, 128)}), "is LoRA on embed_tokens, for which the pages"),
    (lambda t: t.update({"base_model.model.model.embed_tokens.weight": torch.ones(130, 64)}),
     "is an embedding table (added or trained vocabulary)"),
    (lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(130, 64)}),
     "is the output head (added or trained vocabulary)"),
    (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.ones(8, 64)}),
     "is LoRA on lm_head, for which the pages"),
    (lambda t: t.update({"base_model.model.model.unembed_tokens.lora_A.weight": torch.ones(8, 64)}),
     "is LoRA on lm_head, for which the pages"),
    (lambda t: t.update({"base_model.model.lm_head.lora_unembed_B": torch.ones(8, 64)}),
     "is LoRA on lm_head, for which the pages"),
    (lambda t: t.update({"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta":
                         torch.ones(2, 64)}), "is trained token embeddings"),
    (lambda t: t.update({"base_model.model.score.modules_to_save.weight": torch.ones(2, 64)}),
     "is a fully trained copy"),
    (lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(64)}),
     "model.norm.weight' is not lora_A or lora_B"),
    (lambda t: t.update({Q_A.replace("lora_A.weight", "lora_diag"): torch.ones(8)}),
     "lora_diag' is not lora_A or lora_B"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), CHANGED_TENSORS, ids=[r for _, r in CHANGED_TENSORS])
def test_tensors(
    folder: Path, base: NativeConfig, change: Callable[[Tensors], object], reason: str
) -> None:
    change_tensors(folder, change)
    assert reason in refused(folder, base)


def test_an_adapter_of_another_architecture_matches_no_module(
    folder: Path, base: NativeConfig
) -> None:
    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.replace("model.layers", "transformer.h")] = tensors.pop(name)

    change_tensors(folder, rename)
    assert "no tensor matches a module of the base model" in refused(folder, base)


def test_an_adapter_of_a_larger_model_is_refused(tmp_path: Path, base: NativeConfig) -> None:
    make_adapter(tmp_path, "llama-head-dim")
    assert "but the base model needs" in refused(tmp_path, base)


def test_rank_over_the_limit(tmp_path: Path, base: NativeConfig) -> None:
    make_adapter(tmp_path, r=8, rank_pattern={"o_proj": 65})
    assert "has rank 65, over the limit of 64; raise max_lora_rank" in refused(tmp_path, base)


def test_values_beyond_float16_name_the_remedy(folder: Path, base: NativeConfig) -> None:
    change_tensors(folder, lambda t: set_value(t, Q_B, 60000.0))
    assert read(folder, base, torch.bfloat16).rank == 8
    assert "--dtype bfloat16" in refused(folder, base, torch.float16)


def test_missing_folder(tmp_path: Path, base: NativeConfig) -> None:
    assert re.search(r"folder .*nowhere does not exist", refused(tmp_path / "nowhere", base))


def test_missing_config(folder: Path, base: NativeConfig) -> None:
    (folder / "adapter_config.json").unlink()
    message = f"folder {folder} has no adapter_config.json, so it is no PEFT adapter; check"
    assert refused(folder, base).startswith(message)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"",
        b"\xff\xfe",
        pytest.param(b"[" * 100_000, id="nested too deeply"),
        b'{"peft_type": "LORA",}',
    ],
)
def test_malformed_config(folder: Path, base: NativeConfig, content: bytes) -> None:
    (folder / "adapter_config.json").write_bytes(content)
    assert "adapter_config.json is not JSON" in refused(folder, base)


def test_config_that_is_no_object(folder: Path, base: NativeConfig) -> None:
    (folder / "adapter_config.json").write_text("[]")
    assert "must be a JSON object" in refused(folder, base)


def test_values_of_a_part_of_a_merge_are_finite(folder: Path, base: NativeConfig) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    set_value(tensors, Q_A, float("nan"))
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(RequestError, match="values that are not finite"):
        read_checkpoint(folder, base.sites, max_rank=64)


def test_missing_weights(folder: Path, base: NativeConfig) -> None:
    (folder / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors; save the adapter there" in refused(folder, base)


def test_pickled_weights_are_never_opened(folder: Path, base: NativeConfig) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "adapter_model.bin is a pickle" in refused(folder, base)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize(
    "make",
    [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")],
    ids=["folder", "fifo", "device"],
)
def test_what_is_no_file_is_not_opened(
    folder: Path, base: NativeConfig, name: str, make: Callable[[Path], object]
) -> None:
    (folder / name).unlink()
    make(folder / name)
    assert f"{name} in {folder} is not a regular file" in refused(folder, base)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_git_lfs_pointer_is_called_one(folder: Path, base: NativeConfig, name: str) -> None:
    (folder / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    )
    message = refused(folder, base)
    assert message.startswith(f"{name} is a Git LFS pointer") and "git lfs pull" in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:4],
        lambda data: b"",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
    ],
)
def test_damaged_weights(
    folder: Path, base: NativeConfig, damage: Callable[[bytes], bytes]
) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert "adapter_model.safetensors is corrupt or cut short" in refused(folder, base)
