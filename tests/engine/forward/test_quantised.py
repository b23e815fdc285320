"""Logits of a quantised base model, alone and with adapters, equal those of transformers in float32
with the weights that the files mean."""

import re
from array import array
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from multilora.base_model.config import NativeConfig
from multilora.base_model.quantised.matrix import quantise
from multilora.errors import StartupError
from multilora.forward.base_model import KVCache
from multilora.forward.decoder import Decoder, load_decoder
from multilora.forward.step_input import build_step_input
from multilora.lora.rank_pages import RankPagePool
from multilora.request import AdapterSet, Request
from multilora.scheduling.batch import BatchItem, make_batch
from multilora.scheduling.sequence import Sequence
from support.engine.reading import read_adapter
from support.tiny.adapters import make_adapter
from support.tiny.families import VOCAB, make_model, write_model
from support.tiny.quantised import FORMS, write_quantised

CPU = torch.device("cpu")
BLOCK_SIZE = 8
TOKENS = torch.randint(2, VOCAB, (21,), generator=torch.Generator().manual_seed(7)).tolist()
COMPUTED = {  # as what the sites of each form are computed on a CPU
    "gptq": "int4",
    "gptq symmetric": "int4",
    "gptq v2": "int4",
    "gptq act order": "int4",
    "gptq orders": "int4 float32",  # modules that share an input have different orders
    "gptq int8": "int8",
    "gptq int8 groups": "float32",
    "awq": "int4",
    "awq whole rows": "int4",
    "W4A16": "int4",
    "W4A16 zero points": "int4",
    "W4A16 act order": "int4",
    "W4A16 shorter groups": "float32",
    "W8A16": "int8",
    "W8A8": "int8",
    "W8A8 zero points": "float32",
    "compressed fp8": "float32",
    "fp8": "float32",
    "fp8 blocks": "float32",
}


def expected(model: torch.nn.Module, tokens: list[int] = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def computed(
    model: Decoder,
    adapters: dict[str, Path] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> dict[str, torch.Tensor]:
    """Logits after each of TOKENS, by adapter, all in one pass; "" is the base model."""
    named = adapters or {}
    pool, pages = RankPagePool(model.base.sites, len(named) + 1, dtype, device), {}
    for page, (name, folder) in enumerate(named.items()):
        pages[AdapterSet.of(name)] = (page,)
        pool.write((page,), read_adapter(folder, name, model.base.sites, dtype, 16).weights)
    items = []
    blocks = -(-len(TOKENS) // BLOCK_SIZE)
    for index, name in enumerate(("", *named)):
        sequence = Sequence(Request(name, tuple(TOKENS)), arrival=index)
        sequence.adapters = AdapterSet.of(name)
        sequence.block_table = array("i", range(index * blocks, (index + 1) * blocks))
        items.append(BatchItem.next(sequence, len(TOKENS)))
    batch = make_batch(items, pages)
    kv = KVCache(model.base, blocks * len(items), BLOCK_SIZE, dtype, device)
    inputs = build_step_input(batch, BLOCK_SIZE, device, dtype)
    hidden = model.hidden(inputs, kv, pool)
    rows = model.logits(hidden, pool, None).cpu().split(len(TOKENS))
    return {
        item.sequence.request.request_id: row for item, row in zip(batch.items, rows, strict=True)
    }


def load(folder: Path, quantize: str = "auto", dtype: torch.dtype = torch.float32) -> Decoder:
    return load_decoder(folder, NativeConfig.from_folder(folder), dtype, CPU, quantize)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, relative to the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def forms_of(model: Decoder) -> Counter[str]:
    assert model.quantised
    return model.quantised.forms


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_the_weights_that_the_files_mean(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = write_quantised(form, tmp_path)
    ours = load(tmp_path)
    assert not caplog.messages, "all of its tensors are used, or known as not needed"
    if "float32" in COMPUTED[form]:
        mixed = form == "gptq orders"
        why = "modules with one input are" if mixed else "there is no|it needs a GPU"
        assert ours.quantised and re.match(why, ours.quantised.reason)
    assert set(forms_of(ours)) == set(COMPUTED[form].split())
    assert error(computed(ours)[""], expected(theirs)) <= 1e-4


def test_a_form_misread_would_show() -> None:
    """What the comparison above could not tell apart would prove nothing."""
    plain = expected(make_model("llama"))
    assert error(expected(make_model("llama", seed=1)), plain) > 0.5


@pytest.mark.parametrize("form", ["gptq act order", "awq", "W8A8", "fp8 blocks"])
def test_adapters_act_as_peft_has_them_on_the_dequantised_model(form: str, tmp_path: Path) -> None:
    theirs = write_quantised(form, tmp_path / "base")
    adapters = {name: tmp_path / name for name in ("one", "two", "three")}
    for seed, folder in enumerate(adapters.values()):
        make_adapter(folder, seed=seed)
    ours = computed(load(tmp_path / "base"), adapters)
    assert error(ours.pop(""), expected(theirs)) <= 1e-4
    alone = with_adapters(theirs, adapters)
    for name, logits in ours.items():
        alone.set_adapter(name)
        assert error(logits, expected(alone)) <= 1e-4
    assert error(ours["one"], ours["two"]) > 0.05


def with_adapters(model: PreTrainedModel, adapters: dict[str, Path]) -> PeftModel:
    first, *others = adapters
    made = PeftModel.from_pretrained(model, str(adapters[first]), adapter_name=first)
    for name in others:
        made.load_adapter(str(adapters[name]), adapter_name=name)
    return made.eval()


def stepped(model: PreTrainedModel, target: str) -> PreTrainedModel:
    """The weights of its layers at the nearest steps (test_products.py looks at these)."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                matrix = quantise(module.weight, target)
                assert matrix
                module.weight.copy_(matrix.dequantised(torch.float32))
    return model


@pytest.mark.parametrize("target", ["int8", "int4"])
@pytest.mark.parametrize("form", [None, "fp8 blocks"])
def test_quantised_at_start(form: str | None, target: str, tmp_path: Path) -> None:
    """From 32 bits, and anew from blocks of FP8 that no product takes."""
    theirs = write_quantised(form, tmp_path) if form else make_model("llama")
    ours = load(tmp_path if form else write_model(theirs, tmp_path), target)
    assert set(forms_of(ours)) == {target}
    logits = computed(ours)[""]
    assert error(logits, expected(theirs)) > 1e-3
    assert error(logits, expected(stepped(theirs, target))) <= 1e-4
    assert ours.quantised and ours.quantised.num_bytes < ours.quantised.dense_bytes / 3


@pytest.mark.parametrize("target", ["int8", "int4"])
def test_in_bfloat16(target: str, tmp_path: Path) -> None:
    theirs = write_quantised("W8A8" if target == "int8" else "awq", tmp_path)
    ours = load(tmp_path, dtype=torch.bfloat16)
    assert set(forms_of(ours)) == {target}
    assert error(computed(ours, dtype=torch.bfloat16)[""], expected(theirs)) <= 0.05


def test_fp8_needs_a_gpu(tmp_path: Path) -> None:
    write_model(make_model("llama"), tmp_path)
    with pytest.raises(StartupError, match=r"--quantize fp8 .* on cpu .* 8\.9 .* choose int8 or i"):
        load(tmp_path, "fp8")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("form", ["gptq act order", "awq", "W8A8", "compressed fp8", "fp8 blocks"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gpu_computes_the_same(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = write_quantised(form, tmp_path)
    cuda = torch.device("cuda")
    ours = load_decoder(tmp_path, NativeConfig.from_folder(tmp_path), dtype, cuda)
    few = {"awq": "int4", "gptq act order": "int4", "W8A8": "int8", "compressed fp8": "fp8"}
    if form != "compressed fp8" or torch.cuda.get_device_capability() >= (8, 9):
        assert set(forms_of(ours)) == {few.get(form, str(dtype).removeprefix("torch."))}
    assert error(computed(ours, dtype=dtype, device=cuda)[""], expected(theirs)) <= 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("target", ["fp8", "int8", "int4"])
def test_the_gpu_quantises_at_start(target: str, tmp_path: Path) -> None:
    if target == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs compute capability 8.9")
    theirs = make_model("llama")
    folder, cuda = write_model(theirs, tmp_path), torch.device("cuda")
    ours = load_decoder(folder, NativeConfig.from_folder(folder), torch.bfloat16, cuda, target)
    assert set(forms_of(ours)) == {target}
    logits = computed(ours, dtype=torch.bfloat16, device=cuda)[""]
    assert error(logits, expected(stepped(theirs, target))) <= 0.15
