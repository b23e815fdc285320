"""Base models that only numbers show to be wrong end the start, whichever class computes them."""

import dataclasses
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaMLP

from multilora.config import EngineConfig
from multilora.engine import Engine
from multilora.errors import StartupError
from multilora.forward.base_model import BaseModel, Hidden, KVCache, load_base_model, read_base
from multilora.lora.linear import BatchLoRA
from multilora.startup import first_pass
from multilora.startup.first_pass import check_first_pass
from support.tiny.base import write_base

CPU = torch.device("cpu")
IMPLS = ("native", "transformers")
NAN, INF = float("nan"), float("inf")
O_PROJ = "model.layers.1.self_attn.o_proj.weight"


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A Llama with other weights."""
    file = write_base(folder) / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)
    return folder


def load(folder: Path, impl: str, dtype: torch.dtype = torch.float32) -> BaseModel:
    return load_base_model(folder, read_base(folder, impl), dtype, CPU, 64)


def check(folder: Path, impl: str, dtype: torch.dtype = torch.float32) -> None:
    check_first_pass(load(folder, impl, dtype), folder, dtype, CPU)


def refusal(folder: Path, impl: str, dtype: torch.dtype = torch.float32) -> str:
    with pytest.raises(StartupError) as caught:
        check(folder, impl, dtype)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_base_model_that_is_right(impl: str, tmp_path: Path) -> None:
    check(write_base(tmp_path), impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_an_engine_does_not_start_with_weights_that_are_no_numbers(
    impl: str, tmp_path: Path
) -> None:
    changed(tmp_path, lambda tensors: tensors[O_PROJ].fill_(NAN))
    with pytest.raises(StartupError) as caught:
        Engine(EngineConfig(model_id=str(tmp_path), model_impl=impl, dtype="float32", device="cpu"))
    assert str(caught.value) == (
        f"{tmp_path}: what LlamaForCausalLM computes as torch.float32 is not finite; download the "
        "checkpoint again"
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("token", [0, 100])
def test_one_number_of_the_head(token: int, value: float, impl: str, tmp_path: Path) -> None:
    """Also of a token that no row has."""
    name = "model.embed_tokens.weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        head = tensors["lm_head.weight"] = tensors[name].clone()
        head[token, 0], head[token + 1, 0] = value, -value  # one of the logits is not -inf

    assert "is not finite" in refusal(changed(tmp_path, change), impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_what_float16_cannot_hold(impl: str, tmp_path: Path) -> None:
    changed(tmp_path, lambda tensors: tensors[O_PROJ].fill_(6e4))
    check(tmp_path, impl)
    assert refusal(tmp_path, impl, torch.float16).endswith("again or start with --dtype bfloat16")


@pytest.mark.parametrize("impl", IMPLS)
def test_tokens_that_a_class_never_gives_are_no_error(
    impl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(write_base(tmp_path), impl)
    real = model._logits

    def logits(hidden: Hidden, lora: BatchLoRA | None) -> torch.Tensor:
        found = real(hidden, lora)
        found[:, 5] = -INF
        return found

    monkeypatch.setattr(model, "_logits", logits)
    check_first_pass(model, tmp_path, torch.float32, CPU)


def test_what_only_numbers_show_of_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.gate_proj(x)) * self.down_proj.weight.sum()

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    said = refusal(write_base(tmp_path), "transformers")
    assert said.startswith(f"{tmp_path}: LlamaForCausalLM cannot be computed (")
    assert said.endswith("); serve another base model")


@pytest.mark.parametrize("impl", IMPLS)
def test_logits_of_other_tokens(impl: str, tmp_path: Path) -> None:
    model = load(write_base(tmp_path), impl)
    model.base = dataclasses.replace(model.base, vocab_size=model.base.vocab_size - 1)
    with pytest.raises(StartupError, match=r"logits of other tokens than those of vocab_size; ser"):
        check_first_pass(model, tmp_path, torch.float32, CPU)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory(
    error: Exception, impl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(first_pass, "KVCache", fail)
    said = refusal(write_base(tmp_path), impl)
    assert f"{tmp_path} as torch.float32 does not fit on cpu; choose a smaller base model" in said


@pytest.mark.parametrize("impl", IMPLS)
def test_its_kv_cache_is_freed(impl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    real = KVCache.__init__

    def init(kv: KVCache, *arguments: Any) -> None:
        real(kv, *arguments)
        made.extend(map(weakref.ref, (kv.k, kv.v)))

    monkeypatch.setattr(KVCache, "__init__", init)
    model = load(write_base(tmp_path), impl)
    check_first_pass(model, tmp_path, torch.float32, CPU)
    gc.collect()
    assert len(made) == 2 and not any(tensor() is not None for tensor in made)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("longest", [1, 2])
def test_a_base_model_for_fewer_tokens_than_are_tried(
    longest: int, impl: str, tmp_path: Path
) -> None:
    file = write_base(tmp_path) / "config.json"
    file.write_text(file.read_text().replace('embeddings": 256', f'embeddings": {longest}'))
    assert read_base(tmp_path, impl).max_position_embeddings == longest
    check(tmp_path, impl)
