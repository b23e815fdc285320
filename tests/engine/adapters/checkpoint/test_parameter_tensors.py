"""Adapters of parameters (PEFT's target_parameters): which tensors are for which, what their pages
hold, and why some are refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from multilora.adapters.checkpoint.adapter import AdapterReader
from multilora.adapters.checkpoint.checks import AdapterChecks, adapted_places
from multilora.base_model.config import NativeConfig
from multilora.base_model.sites import BaseConfig, modules
from multilora.errors import RequestError
from multilora.forward.base_model import read_base
from support.engine.reading import pages_of, read_adapter
from support.tiny.adapters import make_adapter
from support.tiny.families import make_model, write_model

EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
BOTH = {"target_modules": [], "target_parameters": [f"mlp.{name}" for name in EXPERTS]}
DOWN = {"target_modules": [], "target_parameters": [EXPERTS[1]]}
INNER = "layers.0.mlp.experts.base_layer.lora_"
OUTER = "layers.0.mlp.experts.lora_"


@pytest.fixture(scope="module", name="base_folder")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(make_model("qwen3_moe"), tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", name="base")
def base_with_parameters(base_folder: Path) -> BaseConfig:
    base = read_base(base_folder, "auto")
    return base.with_places([*EXPERTS, "gate.weight"])


@pytest.fixture(name="adapter")
def adapter_of_experts(tmp_path: Path) -> Path:
    make_adapter(tmp_path / "adapter", "qwen3_moe", **BOTH)
    return tmp_path / "adapter"


def configure(folder: Path, **fields: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def change(folder: Path, part: str, tensor: torch.Tensor | None = None, name: str = "") -> Path:
    """Replace or rename (`part` of a name by `name`) tensors, remove those with neither."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for key in [key for key in tensors if part in key]:
        old = tensors.pop(key)
        if tensor is not None or name:
            tensors[key.replace(part, name or part)] = old if tensor is None else tensor
    save_file(tensors, path)
    return folder


def refused(folder: Path, base: BaseConfig, base_folder: Path) -> str:
    """Whether it is read or only looked at."""
    with pytest.raises(RequestError) as caught:
        AdapterReader(base.sites, torch.float32, 64, optional=base.optional).read(folder, "x")
    looked = AdapterChecks(base.sites, 64, base_folder, base.optional).refusal(folder)
    assert looked is not None and looked.message == caught.value.message
    assert "\n" not in looked.message
    return looked.message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        BOTH,
        BOTH | {"target_parameters": ["experts.down_proj"], "r": 17},
        BOTH | {"target_parameters": ["mlp.gate.weight", "gate_up_proj"], "use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"], "target_parameters": [EXPERTS[0]]},
        {"target_modules": [], "target_parameters": ["q_proj.weight"], "alpha_pattern": {
            "q_proj.weight": 40}},
    ],
)  # fmt: skip
def test_pages_hold_the_update_that_peft_computes(
    tmp_path: Path, base: BaseConfig, config: dict[str, Any], dtype: torch.dtype
) -> None:
    theirs = dict(make_model("qwen3_moe").named_parameters())
    merged = make_adapter(tmp_path, "qwen3_moe", **config).merge_and_unload()
    deltas = {
        name.removesuffix(".weight") if ".gate." not in name else name: new - theirs[name]
        for name, new in merged.named_parameters()
    }
    adapter = read_adapter(tmp_path, "x", base.sites, dtype, 64)
    pool = pages_of(adapter, base.sites, dtype)
    touched: set[str] = set()
    for path, (site, part) in modules(base.sites).items():
        if len(site.slices) > 1:
            continue
        a = pool.a[site.name].float().view(-1, site.experts, 16, site.in_features)
        b = pool.b[site.name].float().view(-1, site.experts, 16, site.out_features)
        ours = torch.einsum("pero,peri->eoi", b, a).reshape(deltas[path].shape)
        accuracy = 1e-5 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(ours, deltas[path], rtol=0, atol=accuracy)
        if ours.any():
            touched.add(part.short_name)
    named = {name for name in adapter.modules if name not in ("q_proj", "k_proj", "v_proj")}
    assert touched == named and adapter.modules


def test_experts_of_one_training_share_a_plan_and_nothing_else(
    tmp_path: Path, base: BaseConfig
) -> None:
    reader = AdapterReader(base.sites, torch.float32, 64)
    for name, seed in (("one", 1), ("two", 2)):
        make_adapter(tmp_path / name, "qwen3_moe", seed, **BOTH)
    one, two, again = (reader.read(tmp_path / name, name) for name in ("one", "two", "one"))
    assert one.weights.plan is two.weights.plan is again.weights.plan
    for adapter in (one, two, again):
        alone = read_adapter(tmp_path / adapter.adapter_id, "x", base.sites, torch.float32, 64)
        found, expected = (pages_of(each, base.sites, torch.float32).data for each in
                           (adapter, alone))  # fmt: skip
        assert torch.equal(found, expected)


def test_experts_beside_what_an_adapter_lacks_are_zeros(tmp_path: Path, base: BaseConfig) -> None:
    make_adapter(tmp_path, "qwen3_moe", target_modules=["q_proj"], r=20)
    adapter = read_adapter(tmp_path, "x", base.sites, torch.float32, 64)
    pool = pages_of(adapter, base.sites, torch.float32)
    pool.data.fill_(7.0)
    pool.write(range(adapter.num_pages), adapter.weights)
    for site in base.parameter_sites:
        assert not pool.a[site.name].any() and not pool.b[site.name].any()
    assert not (pool.data == 7.0).any(), "every number of the pages was written"


def as_peft_018_has_it(folder: Path, version: str | None = "0.18.1") -> Path:
    """A and B of experts in each other's place, as it took the rows of a matrix for inputs."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        a, b = tensors[name].unflatten(0, (4, -1)), tensors[other].unflatten(1, (-1, 4))
        tensors[name] = b.permute(2, 1, 0).flatten(0, 1).contiguous()
        tensors[other] = a.permute(2, 1, 0).flatten(1, 2).contiguous()
    save_file(tensors, path)
    return configure(folder, peft_version=version)


def test_files_of_peft_before_it_knew_which_way_experts_are(
    tmp_path: Path, adapter: Path, base: BaseConfig
) -> None:
    def data(base: BaseConfig) -> torch.Tensor:
        read = read_adapter(adapter, "x", base.sites, torch.float32, 64)
        return pages_of(read, base.sites, torch.float32).data

    before = data(base)
    for version in ("0.18.1", None):
        assert torch.equal(data(base), before)
        as_peft_018_has_it(adapter, version)
        assert torch.equal(data(base), before)
        as_peft_018_has_it(adapter)  # and back
    square = make_model("qwen3_moe", moe_intermediate_size=64)
    base = read_base(write_model(square, tmp_path / "square"), "auto").with_places(EXPERTS)
    adapted = get_peft_model(square, LoraConfig(**DOWN, init_lora_weights=False))
    adapted.save_pretrained(str(adapter))
    before = data(base)
    as_peft_018_has_it(adapter)
    assert torch.equal(data(base), before)
    configure(adapter, peft_version="0.19.0.dev0@1a2b")
    assert not torch.equal(data(base), before)
    configure(adapter, peft_version=None)
    with pytest.raises(RequestError, match=r"square matrices, and .* has no peft_version"):
        data(base)


def test_files_of_transposed_experts_from_before_their_class_said_so(tmp_path: Path) -> None:
    """As PEFT since 0.19 wrote them with transformers 4; square matrices go by their neighbours."""
    theirs = make_model("gpt_oss", intermediate_size=64)
    base = read_base(write_model(theirs, tmp_path / "base"), "auto").with_places(EXPERTS)
    adapted = get_peft_model(theirs, LoraConfig(**BOTH, init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "x"))
    first = read_adapter(tmp_path / "x", "x", base.sites, torch.float32, 64)
    before = pages_of(first, base.sites, torch.float32).data
    as_peft_018_has_it(tmp_path / "x", "0.19.0")
    second = read_adapter(tmp_path / "x", "x", base.sites, torch.float32, 64)
    assert torch.equal(pages_of(second, base.sites, torch.float32).data, before)


def test_what_is_remembered_of_square_experts_is_of_one_peft(tmp_path: Path) -> None:
    theirs = make_model("qwen3_moe", moe_intermediate_size=64)
    folder = write_model(theirs, tmp_path / "base")
    base = read_base(folder, "auto").with_places(EXPERTS)
    adapted = get_peft_model(theirs, LoraConfig(**DOWN, init_lora_weights=False))
    checks = AdapterChecks(base.sites, 64, folder, base.optional)
    for name, version in (("a", None), ("b", "0.19.1"), ("c", "0.18.0"), ("d", None)):
        adapted.save_pretrained(str(tmp_path / name))
        found = checks.refusal(configure(tmp_path / name, peft_version=version))
        assert (found is None) == (version is not None)


def test_files_that_have_the_layers_of_peft_the_other_way_round(
    adapter: Path, base: BaseConfig, base_folder: Path
) -> None:
    for old, new in ((INNER, "spare"), (OUTER, INNER), ("spare", OUTER)):
        change(adapter, old, name=new)
    wrong = refused(adapter, base, base_folder)
    assert re.search(r"shape \[\d+, \d+\], but the base model needs \[", wrong)


@pytest.mark.parametrize(
    ("part", "tensor", "reason"),
    [
        (f"{OUTER}A", torch.ones(33, 48), "shape [33, 48], but the base model needs ['4 · rank',"),
        (f"{OUTER}A", torch.ones(32, 40), "shape [32, 40], but the base model needs [32, 48]"),
        (f"{INNER}B", torch.ones(96, 30), "shape [96, 30], but the base model needs [96, 32]"),
        (f"{INNER}B", None, "base_layer.lora_A.weight' has no lora_B beside it"),
        (f"{OUTER}A", torch.full((32, 48), torch.inf), "holds values that are not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_do_not_fit(
    adapter: Path, base: BaseConfig, part: str, tensor: torch.Tensor | None, reason: str
) -> None:
    change(adapter, part, tensor)
    with pytest.raises(RequestError) as caught:
        read_adapter(adapter, "x", base.sites, torch.float32, 64)
    assert reason in caught.value.message


def test_ranks(adapter: Path, base: BaseConfig, base_folder: Path) -> None:
    configure(adapter, rank_pattern={EXPERTS[1]: 4})
    with pytest.raises(RequestError, match=r"has rank 8, but adapter_config\.json says 4"):
        read_adapter(adapter, "x", base.sites, torch.float32, 64)
    configure(adapter, rank_pattern={})
    with pytest.raises(RequestError, match="has rank 8, over the limit of 7"):
        read_adapter(adapter, "x", base.sites, torch.float32, 7)


def test_a_config_that_names_no_parameters(
    adapter: Path, base: BaseConfig, base_folder: Path
) -> None:
    configure(adapter, target_parameters=None)
    assert "no tensor matches a module" in refused(adapter, base, base_folder)
    configure(adapter, target_parameters="experts")
    assert "is LoRA on the parameter" in refused(adapter, base, base_folder)
    configure(adapter, target_parameters=[1])
    assert "target_parameters must be a list" in refused(adapter, base, base_folder)


def test_places_that_the_pages_have_no_room_for(
    adapter: Path, base: BaseConfig, base_folder: Path
) -> None:
    reason = refused(adapter, base.with_places(["gate.weight"]), base_folder)
    assert "LoRA on experts.down_proj and experts.gate_up_proj, for which the pages" in reason
    flag = "start the server with experts.down_proj,experts.gate_up_proj in --lora-target-modules"
    assert reason.endswith(flag)
    half = refused(adapter, base.with_places(["experts.down_proj"]), base_folder)
    assert half.endswith("start the server with experts.gate_up_proj in --lora-target-modules")


def test_parameters_that_the_base_model_has_not(
    tmp_path: Path, adapter: Path, base: BaseConfig, base_folder: Path
) -> None:
    llama = write_model(make_model("llama"), tmp_path / "llama")
    native = NativeConfig.from_folder(llama)
    reason = refused(adapter, native, llama)
    assert "is LoRA on the parameter experts.down_proj, on which adapters cannot act" in reason
    assert "(parameters on which they can: none)" in reason
    configure(adapter, target_parameters=["mlp.experts.gate_up_proj_bias", "experts.w2"])
    reason = refused(adapter, base, base_folder)
    assert "on the parameter experts.gate_up_proj_bias, on which adapters cannot act" in reason
    assert "can: gate.weight, experts.gate_up_proj, experts.down_proj)" in reason


def test_layers_that_the_base_model_has_not(
    adapter: Path, base: BaseConfig, base_folder: Path
) -> None:
    change(adapter, "layers.2.", name="layers.5.")
    reason = refused(adapter, base, base_folder)
    assert "is for layer 5, but the base model has layers 0 to 2" in reason


def test_a_look_tells_adapters_of_other_parameters_apart(
    adapter: Path, base: BaseConfig, base_folder: Path
) -> None:
    """Their tensors are the same."""
    checks = AdapterChecks(base.sites, 64, base_folder, base.optional)
    assert checks.refusal(adapter) is None
    configure(adapter, target_parameters=["experts.gate_up_proj"])
    assert checks.refusal(adapter) is not None


def test_on_which_places_an_adapter_acts(adapter: Path, base_folder: Path) -> None:
    base = read_base(base_folder, "auto")
    assert adapted_places(adapter, base, 64, base_folder) == set(EXPERTS)
    assert adapted_places(adapter, base, 4, base_folder) == set(EXPERTS), "the reason comes later"
    configure(adapter, target_parameters=["down_proj", "experts.gate_up_proj", "lm_head.weight"])
    assert adapted_places(adapter, base, 64, base_folder) == set(EXPERTS)
    change(adapter, "base_layer")
    configure(adapter, target_parameters=["experts.down_proj"])
    assert adapted_places(adapter, base, 64, base_folder) == {"experts.down_proj"}
