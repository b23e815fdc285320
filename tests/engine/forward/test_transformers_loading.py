"""Quantised base models that a class of transformers computes equal the weights that their files
mean, in float32."""

import json
import logging
import re
from array import array
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaModel

from multilora.base_model import checkpoint
from multilora.base_model.quantised.matrix import quantise
from multilora.base_model.transformers_config import TransformersConfig
from multilora.errors import StartupError
from multilora.forward.base_model import KVCache
from multilora.forward.step_input import build_step_input
from multilora.forward.transformers_decoder import TransformersDecoder
from multilora.forward.transformers_loading import load_transformers_decoder
from multilora.request import AdapterSet, Request
from multilora.scheduling.batch import BatchItem, make_batch
from multilora.scheduling.sequence import Sequence
from support.engine.passes import (
    BLOCK_SIZE,
    CPU,
    assert_same_logits,
    reference,
    tokens_of,
)
from support.engine.reading import pages_of, read_adapter
from support.tiny.adapters import make_adapter
from support.tiny.families import make_model, randomised, write_model
from support.tiny.quantised import write_quantised

MXFP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # and the same with a sign
BLOCK = 16


def load(folder: Path, quantize: str = "auto", places: SequenceOf[str] = ()) -> TransformersDecoder:
    base = TransformersConfig.from_folder(folder).with_places(places)
    total = base.max_position_embeddings
    return load_transformers_decoder(folder, base, torch.float32, CPU, total, quantize)


def forms(model: TransformersDecoder) -> set[str]:
    assert model.quantised
    return set(model.quantised.forms)


@pytest.mark.parametrize(
    ("variant", "form", "computed"),
    [
        ("phi3", "gptq act order", "int4"),
        ("gemma3", "awq", "int4"),
        ("granite", "W4A16 zero points", "int4"),
        ("gemma2", "W8A8", "int8"),
        ("stablelm", "fp8 blocks", "float32"),
    ],
)
def test_checkpoints(variant: str, form: str, computed: str, tmp_path: Path) -> None:
    theirs = write_quantised(form, tmp_path, make_model(variant))
    ours = load(tmp_path)
    assert forms(ours) == {computed}
    assert_same_logits(theirs, ours)


@pytest.mark.parametrize("target", ["int8", "int4"])
def test_quantised_at_start(target: str, tmp_path: Path) -> None:
    theirs = make_model("olmo2")
    ours = load(write_model(theirs, tmp_path), target)
    assert forms(ours) == {target}
    with torch.no_grad():
        for name, module in theirs.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                matrix = quantise(module.weight, target)
                assert matrix
                module.weight.copy_(matrix.dequantised(torch.float32))
    assert_same_logits(theirs, ours)


@pytest.mark.parametrize("variant", ["phi3", "gemma2"])  # gemma2 ties its head
def test_a_quantised_head(variant: str, tmp_path: Path) -> None:
    theirs = write_quantised("W4A16", tmp_path, make_model(variant), head=True)
    assert_same_logits(theirs, load(tmp_path))


def test_the_text_part_of_a_model_for_images(tmp_path: Path) -> None:
    """Whose other parts are quantised, too."""
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    text = make_model("gemma3").config.to_dict()
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    theirs = Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager")
    theirs = write_quantised("W4A16", tmp_path, randomised(theirs.eval()))
    ours = load(tmp_path)
    assert forms(ours) == {"int4"}
    assert_same_logits(theirs, ours)


def rewritten(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    save_file(tensors, folder / "model.safetensors")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": config}))


def write_fp8_experts(folder: Path) -> PreTrainedModel:
    """Every matrix of the layers but the routers' in blocks of FP8 → the model they mean."""
    write_model(make_model("qwen3_moe"), folder)
    tensors, meant = load_file(folder / "model.safetensors"), {}
    for name, weight in list(tensors.items()):
        meant[name] = weight
        if name.endswith("_proj.weight"):
            blocks = weight.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
            scale = blocks.abs().amax((1, 3)) / 448
            q = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            tensors[name] = q.flatten(2).flatten(0, 1)
            tensors[f"{name}_scale_inv"] = scale
            meant[name] = (q.float() * scale[:, None, :, None]).flatten(2).flatten(0, 1)
    save_file(meant, folder / "model.safetensors")
    theirs = type(make_model("qwen3_moe")).from_pretrained(folder, attn_implementation="eager")
    rewritten(folder, tensors, {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]})
    return theirs.eval()


def write_mxfp4(folder: Path) -> PreTrainedModel:
    """Experts of gpt-oss as OpenAI's files have them → the model they mean."""
    theirs = make_model("gpt_oss", hidden_size=64, intermediate_size=64)
    write_model(theirs, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, weight in theirs.named_parameters():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        parts = weight.detach().mT.unflatten(2, (-1, 32))  # [experts, out, groups, 32]
        exponent = (parts.abs().amax(3) / 6).log2().ceil()
        steps = parts / exponent.exp2()[..., None]
        code = (steps.abs()[..., None] - MXFP4).abs().argmin(-1)
        negative = (steps < 0).long()
        nibbles = code + 8 * negative
        meant = MXFP4[code] * (1 - 2 * negative) * exponent.exp2()[..., None]
        weight.data.copy_(meant.flatten(2).mT)
        del tensors[name]
        tensors[f"{name}_blocks"] = (nibbles[..., ::2] + 16 * nibbles[..., 1::2]).to(torch.uint8)
        tensors[f"{name}_scales"] = (exponent + 127).to(torch.uint8)
    rewritten(folder, tensors, {"quant_method": "mxfp4"})
    return theirs


@pytest.mark.parametrize("write", [write_fp8_experts, write_mxfp4])
def test_experts_are_dequantised(write: Any, tmp_path: Path) -> None:
    theirs = write(tmp_path)
    ours = load(tmp_path)
    assert forms(ours) == {"float32"}
    assert ours.quantised and ours.quantised.reason
    assert_same_logits(theirs, ours)


@pytest.mark.parametrize("write", [write_fp8_experts, write_mxfp4])
def test_adapters_act_on_experts_that_are_dequantised(write: Any, tmp_path: Path) -> None:
    places = ("experts.gate_up_proj", "experts.down_proj")
    theirs = write(tmp_path)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=[], target_parameters=[*places])
    adapted: Any = get_peft_model(theirs, config)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.normal_(std=0.2)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    ours = load(tmp_path, places=places)
    adapter = read_adapter(tmp_path / "adapter", "x", ours.base.sites, torch.float32, 16)
    own = AdapterSet.of("x")
    sequence = Sequence(Request("x", tuple(tokens_of("x", 20))))
    sequence.adapters, sequence.block_table = own, array("i", range(3))
    batch = make_batch([BatchItem.next(sequence, 20)], {own: (0,)})
    pool = pages_of(adapter, ours.base.sites, torch.float32)
    kv = KVCache(ours.base, 3, BLOCK_SIZE, torch.float32, CPU)
    found = ours.forward(build_step_input(batch, BLOCK_SIZE, CPU, torch.float32), kv, pool)[0]
    expected = reference(adapted, tokens_of("x", 20))[-1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    with adapted.disable_adapter():
        plain = reference(adapted, tokens_of("x", 20))[-1]
    assert (plain - expected).abs().max() > 0.1


def test_those_who_wait_are_told_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint, "_TOLD_SECONDS", 0.0)
    caplog.set_level("INFO")
    load(write_model(make_model("phi3"), tmp_path))
    for what in ("reading", "preparing"):
        said = [r.getMessage() for r in caplog.records if r.getMessage().startswith(what)]
        assert said[0] == f"{what} the base model: 0 %"
        assert re.fullmatch(rf"{what} the base model: (8|9)\d %", said[-1])


def test_experts_that_nobody_dequantises_are_refused(tmp_path: Path) -> None:
    write_fp8_experts(tmp_path)
    with pytest.raises(StartupError, match=r"--quantize int4 does not go with experts .* leave"):
        load(tmp_path, "int4")
    names = ("qweight", "qzeros", "scales")
    experts = "model.layers.0.mlp.experts.1.up_proj"
    tensors = {f"{experts}.{name}": torch.zeros(1) for name in names}
    rewritten(tmp_path, tensors, {"quant_method": "gptq", "bits": 4})
    with pytest.raises(StartupError, match=rf"experts .* gptq \({experts}\) .* in FP8, bfloat16"):
        load(tmp_path)


def changed(folder: Path, **tensors: torch.Tensor) -> Path:
    """A Phi-3 with other tensors in its second layer."""
    write_model(make_model("phi3"), folder)
    names = {f"model.layers.1.self_attn.{name}.weight": value for name, value in tensors.items()}
    save_file(load_file(folder / "model.safetensors") | names, folder / "model.safetensors")
    return folder


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_tensors_that_the_class_has_not_or_of_other_sizes(tmp_path: Path) -> None:
    changed(tmp_path, o_proj=torch.ones(3, 4))
    with pytest.raises(StartupError, match=r"o_proj.weight has shape \[3, 4\] but .* \[64, 64\]"):
        load(tmp_path)
    changed(tmp_path)
    edit(tmp_path, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(StartupError, match=r"no weight file has tensor model.norm.weight \(1 are"):
        load(tmp_path)


@pytest.mark.parametrize("form", ["", "W4A16", "fp8"])
def test_tensors_that_nobody_reads_are_named(
    form: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    """And no others: those of modules that are read by us are used. The library's report, which
    would name them, is not printed."""
    model = make_model("phi3")
    if form:
        write_quantised(form, tmp_path, model)
    else:
        write_model(model, tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({"mtp.weight": torch.ones(1)}))
    library = logging.getLogger("transformers")  # which hands nothing on
    library.addHandler(caplog.handler)
    request.addfinalizer(lambda: library.removeHandler(caplog.handler))
    load(tmp_path)
    ours = [record for record in caplog.records if record.name.startswith("multilora")]
    (told,) = (record.getMessage() for record in ours)
    assert told == f"{tmp_path}: 1 tensors are not used: mtp.weight"
    assert not [text for text in caplog.messages if "UNEXPECTED" in text]


def test_numbers_of_a_class_that_are_no_weights_may_be_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    init = LlamaModel.__init__

    def counting(self: Any, config: Any) -> None:
        init(self, config)
        self.register_buffer("counts", torch.arange(3))

    monkeypatch.setattr(LlamaModel, "__init__", counting)
    theirs = make_model("llama")
    assert_same_logits(theirs, load(write_model(theirs, tmp_path)))


def test_an_adapter_beside_the_base_is_not_loaded(tmp_path: Path) -> None:
    write_model(make_model("phi3"), tmp_path)
    make_adapter(tmp_path)
    with pytest.raises(StartupError, match=r"holds an adapter beside .*; move adapter_config"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_codes_of_which_nobody_says_what_they_mean(dtype: torch.dtype, tmp_path: Path) -> None:
    changed(tmp_path, o_proj=torch.ones(64, 64).to(dtype))
    with pytest.raises(StartupError, match=r"o_proj.weight is .* no quantization_config that says"):
        load(tmp_path)


def test_a_quantised_embedding_is_refused(tmp_path: Path) -> None:
    write_quantised("fp8", tmp_path, make_model("phi3"))
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.embed_tokens.weight"
    tensors |= {name: tensors[name].to(torch.float8_e4m3fn), f"{name}_scale": torch.tensor(0.5)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(StartupError, match=rf"tensor {name} is F8_E4M3, .* or use the bfloat16"):
        load(tmp_path)
