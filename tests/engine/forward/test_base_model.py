"""What holds for a base model whichever class computes it."""

import os
from array import array
from pathlib import Path

import pytest
import torch

from multilora.base_model import weights
from multilora.errors import StartupError
from multilora.forward import transformers_loading
from multilora.forward.base_model import BaseModel, KVCache, load_base_model, read_base
from multilora.forward.decoder import Decoder
from multilora.forward.step_input import StepInput, build_step_input
from multilora.forward.transformers_decoder import TransformersDecoder
from multilora.lora.rank_pages import RankPagePool
from multilora.request import AdapterSet, Request
from multilora.scheduling.batch import BatchItem, make_batch
from multilora.scheduling.sequence import Sequence
from support.engine.passes import BLOCK_SIZE, CPU
from support.tiny.families import make_model, write_model
from support.tiny.quantised import write_quantised

IMPLS = ("native", "transformers")
TOTAL = 64


def load(
    folder: Path,
    impl: str,
    tables: tuple[str, ...] = (),
    quantize: str = "auto",
    dtype: torch.dtype = torch.float32,
) -> BaseModel:
    base = read_base(folder, impl).with_places(tables)
    return load_base_model(folder, base, dtype, CPU, TOTAL, quantize)


def inputs(adapter: str = "a", with_sampled: bool = False, count: int = 5) -> StepInput:
    """A prompt with that adapter."""
    sequence = Sequence(Request("", tuple(range(2, 2 + count))))
    sequence.adapters = AdapterSet.of(adapter)
    sequence.block_table = array("i", [0])
    batch = make_batch([BatchItem.next(sequence, count)], {AdapterSet.of("a"): (0,)})
    return build_step_input(batch, BLOCK_SIZE, CPU, torch.float32, with_sampled=with_sampled)


def cache(model: BaseModel, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(model.base, 1, BLOCK_SIZE, dtype, CPU)


def pages(model: BaseModel) -> RankPagePool:
    return RankPagePool(model.base.sites, 1, torch.float32, CPU)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(make_model("llama"), tmp_path_factory.mktemp("llama"))


def test_which_class_computes_it(llama: Path, tmp_path: Path) -> None:
    phi = write_model(make_model("phi3"), tmp_path)
    for folder, impl, kind in (
        (llama, "auto", Decoder),
        (llama, "native", Decoder),
        (llama, "transformers", TransformersDecoder),
        (phi, "auto", TransformersDecoder),
    ):
        assert type(load(folder, impl)) is kind
    with pytest.raises(StartupError, match="Phi3ForCausalLM' is not supported; supported: Llama"):
        read_base(phi, "native")


@pytest.mark.parametrize("impl", IMPLS)
def test_rows_with_an_adapter_need_its_pages(impl: str, llama: Path) -> None:
    model = load(llama, impl)
    kv, step = cache(model), inputs()
    for call in (model.forward, model.hidden):
        with pytest.raises(ValueError, match="adapter rows but no adapter pages were given"):
            call(step, kv, None)
    with pytest.raises(ValueError, match="adapter rows but no adapter pages were given"):
        model.logits(model.hidden(step, kv, pages(model)), None, step.segments)
    assert torch.equal(model.forward(inputs(""), kv, None), model.forward(step, kv, pages(model)))


@pytest.mark.parametrize("impl", IMPLS)
def test_an_adapter_on_the_head_needs_the_rows_that_sample(impl: str, llama: Path) -> None:
    model = load(llama, impl, ("lm_head",))
    kv, adapters = cache(model), pages(model)
    for call in (model.forward, model.hidden):
        with pytest.raises(ValueError, match="on the head but the batch does not say on which"):
            call(inputs(), kv, adapters)
    expected = model.forward(inputs(""), kv, None)
    assert torch.equal(model.forward(inputs(with_sampled=True), kv, adapters), expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_float32_and_go_where_they_are_asked_for(
    dtype: torch.dtype, impl: str, llama: Path
) -> None:
    model = load(llama, impl, dtype=dtype)
    kv = cache(model, dtype)
    found = model.forward(inputs(""), kv, None)
    out = torch.full_like(found, torch.nan)
    assert model.forward(inputs(""), kv, None, out) is out
    assert found.dtype == torch.float32 and torch.equal(found, out)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_base_model_that_is_too_large(
    impl: str, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore")

    monkeypatch.setattr(weights, "CheckpointFiles", fail)
    monkeypatch.setattr(transformers_loading.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(StartupError) as caught:
        load(llama, impl)
    assert str(caught.value) == (
        f"{llama} as torch.float32 does not fit on cpu; choose a smaller base model or dtype, or "
        "--quantize int4"
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "form", ["float32", "bfloat16", "not packed", "awq", "W4A16", "W8A8", "fp8", "to int8"]
)
def test_a_checkpoint_that_changes_after_it_was_loaded(
    form: str, impl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are mapped while they are read: nothing of the model may lie in them any longer."""
    if form == "not packed":  # as on a processor that cannot multiply with packed weights
        for form_of in ("_half", "_reordered"):
            monkeypatch.setattr(weights, form_of, lambda _: None)
    dtype = torch.bfloat16 if form == "bfloat16" else torch.float32
    quantize = "int8" if form == "to int8" else "auto"
    theirs = make_model("llama-biases")
    if form in ("float32", "bfloat16", "not packed", "to int8"):
        write_model(theirs.bfloat16() if form == "bfloat16" else theirs, tmp_path)
    else:
        write_quantised(form, tmp_path, theirs)
    model = load(tmp_path, impl, quantize=quantize, dtype=dtype)

    def logits() -> torch.Tensor:
        return model.forward(inputs("", count=8), cache(model, dtype), None)

    expected = logits()
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as changing:
        changing.write(b"\xff" * file.stat().st_size)
    assert torch.equal(logits(), expected)
    os.truncate(file, 0)  # to read a page of it that is still mapped would kill this process
    assert torch.equal(logits(), expected)
