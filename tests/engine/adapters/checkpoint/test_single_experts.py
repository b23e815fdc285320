"""Adapters that name each expert's own modules, as PEFT wrote them while experts were modules: what
their pages hold, what a running engine answers, and why some are refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from multilora.adapters.checkpoint.adapter import AdapterReader
from multilora.adapters.checkpoint.checks import AdapterChecks, adapted_places
from multilora.base_model.sites import BaseConfig
from multilora.errors import RequestError
from multilora.forward.base_model import read_base
from support.engine.peft import by_peft
from support.engine.reading import pages_of, read_adapter
from support.engine.requests import MakeEngine, request, run, tokens
from support.tiny.families import make_model, write_model

PLACES = ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
NAMES = {  # of a layer's block, and of the gate, up and down projection of an expert
    "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
}
Folder = tuple[Path, BaseConfig]


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", name="base")
def mixture(family: str, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = write_model(make_model(family), tmp_path_factory.mktemp("base"))
    return folder, read_base(folder, "auto").with_places(PLACES)


def write(folder: Path, family: str, base: BaseConfig, r: int = 3, **config: Any) -> Path:
    """An adapter on all of a layer's mixture, and on q_proj."""
    block, gate, up, down = NAMES[family]
    noise = torch.Generator().manual_seed(r)
    tensors: dict[str, torch.Tensor] = {}

    def add(module: str, inputs: int, outputs: int) -> None:
        for half, shape in (("A", (r, inputs)), ("B", (outputs, r))):
            name = f"base_model.model.model.layers.{module}.lora_{half}.weight"
            tensors[name] = torch.randn(shape, generator=noise) / 4

    stacked = next(site for site in base.parameter_sites if site.name.endswith("down_proj"))
    hidden, inner = base.hidden_size, stacked.in_features
    for layer in range(base.num_layers):
        add(f"{layer}.self_attn.q_proj", hidden, base.num_heads * base.head_dim)
    for layer in sorted({site.layer or 0 for site in base.parameter_sites}):
        add(f"{layer}.{block}.gate", hidden, stacked.experts)
        for expert in range(stacked.experts):
            own = f"{layer}.{block}.experts.{expert}"
            for module, inputs, outputs in ((gate, hidden, inner), (up, hidden, inner)):
                add(f"{own}.{module}", inputs, outputs)
            add(f"{own}.{down}", inner, hidden)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": 2 * r,
        "target_modules": ["q_proj", "gate", gate, up, down], "peft_version": "0.14.0", **config,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def change(folder: Path, changes: Mapping[str, torch.Tensor | None]) -> None:
    """Replace or, with None, remove tensors."""
    path = folder / "adapter_model.safetensors"
    tensors: dict[str, torch.Tensor | None] = {**load_file(path), **changes}
    save_file({name: each for name, each in tensors.items() if each is not None}, path)


def deltas(folder: Path, family: str, layer: int, scalings: Mapping[str, float]) -> torch.Tensor:
    """What the file says of gate over up, [experts, 2 · inner, hidden]."""
    block, gate, up, _ = NAMES[family]
    tensors = load_file(folder / "adapter_model.safetensors")
    found: list[torch.Tensor] = []
    for expert in range(4):
        halves: list[torch.Tensor] = []
        for module in (gate, up):
            own = f"base_model.model.model.layers.{layer}.{block}.experts.{expert}.{module}.lora_"
            product = tensors[f"{own}B.weight"] @ tensors[f"{own}A.weight"]
            halves.append(scalings[module] * product)
        found.append(torch.cat(halves))
    return torch.stack(found)


@pytest.mark.parametrize("uneven", [False, True])
def test_pages_hold_gate_over_up_of_each_expert(
    tmp_path: Path, family: str, base: Folder, uneven: bool
) -> None:
    _, gate, up, _ = NAMES[family]
    config = {"alpha_pattern": {up: 21}} if uneven else {}
    folder = write(tmp_path / "x", family, base[1], r=12, **config)
    adapter = read_adapter(folder, "x", base[1].sites, torch.float32, 64)
    assert adapter.num_pages == 2  # of 24 ranks
    pool = pages_of(adapter, base[1].sites, torch.float32)
    for site in base[1].parameter_sites:
        if not site.name.endswith("gate_up_proj"):
            continue
        a = pool.a[site.name].view(-1, 4, 16, site.in_features)
        b = pool.b[site.name].view(-1, 4, 16, site.out_features)
        assert site.layer is not None
        scalings = {gate: 2.0, up: 21 / 12 if uneven else 2.0}
        expected = deltas(folder, family, site.layer, scalings)
        torch.testing.assert_close(torch.einsum("pero,peri->eoi", b, a), expected)


def test_answers_are_those_of_peft_which_converts_them(
    make_engine: MakeEngine, tmp_path: Path, family: str, base: Folder
) -> None:
    folders = {name: write(tmp_path / name, family, base[1], r) for name, r in (("a", 3), ("b", 8))}
    engine = make_engine(folders, model_id=str(base[0]), max_batch_prefill_tokens=24)
    asked = [request(name, name, 17) for name in folders]
    crowd = run(engine, *asked, request("base", "", 17))
    for one in asked:
        expected = by_peft(base[0], folders[one.adapter_id], one, 12)
        assert tokens(crowd[one.request_id]) == expected
    assert len({tuple(tokens(each)) for each in crowd.values()}) == 3


def test_the_places_are_found_where_somebody_looks(
    tmp_path: Path, family: str, base: Folder
) -> None:
    folder = write(tmp_path / "x", family, base[1])
    places = adapted_places(folder, base[1].with_places([]), 64, base[0])
    assert places == frozenset(PLACES)


def refused(folder: Path, base: Folder) -> str:
    sites, optional = base[1].sites, base[1].optional
    with pytest.raises(RequestError) as caught:
        AdapterReader(sites, torch.float32, 32, optional=optional).read(folder, "x")
    looked = AdapterChecks(sites, 32, base[0], optional).refusal(folder)
    assert looked is not None and looked.message == caught.value.message
    return looked.message


def test_refusals(tmp_path: Path, family: str, base: Folder) -> None:
    block, gate, up, _ = NAMES[family]
    own = f"base_model.model.model.layers.2.{block}.experts"
    a = load_file(write(tmp_path / "x", family, base[1]) / "adapter_model.safetensors")[
        f"{own}.2.{gate}.lora_A.weight"
    ]
    cases: dict[str, dict[str, torch.Tensor | None]] = {
        f"'{own}.4.{gate}.lora_A.weight' is for expert 4, but the base model has experts 0 to 3":
            {f"{own}.4.{gate}.lora_A.weight": a},
        f"'{own}.2.{up}.lora_A.weight' has no lora_B beside it":
            {f"{own}.2.{up}.lora_B.weight": None},
        f"'{own}.2.{gate}.lora_A.weight' has shape [3, {a.shape[1] - 1}], but the base":
            {f"{own}.2.{gate}.lora_A.weight": a[:, 1:].contiguous()},
        "are for the same module":
            {f"model.layers.2.{block}.experts.2.{gate}.lora_A.weight": a.clone()},
        f"'{own}.2.{gate}_.lora_A.weight' is not lora_A or lora_B of":
            {f"{own}.2.{gate}_.lora_A.weight": a.clone()},
    }  # fmt: skip
    for number, (message, changes) in enumerate(cases.items()):
        folder = write(tmp_path / f"{number}", family, base[1])
        change(folder, changes)
        assert message in refused(folder, base)
    wide = write(tmp_path / "wide", family, base[1], r=17)
    assert "ranks 17 and 17, together over the limit of 32; raise" in refused(wide, base)
    without = base[0], base[1].with_places(["gate.weight"])
    message = refused(tmp_path / "x", without)
    assert message.endswith("experts.gate_up_proj,experts.down_proj in --lora-target-modules")
    message = refused(tmp_path / "x", (base[0], base[1].with_places(PLACES[1:])))
    assert message.endswith("with gate.weight in --lora-target-modules")


def test_experts_that_are_left_alone_are_zeros(tmp_path: Path, family: str, base: Folder) -> None:
    block, gate, *_ = NAMES[family]
    folder = write(tmp_path / "x", family, base[1])
    path = folder / "adapter_model.safetensors"
    kept = f"layers.0.{block}.experts.1.{gate}.lora_"
    save_file({name: each for name, each in load_file(path).items() if kept in name}, path)
    pool = pages_of(
        read_adapter(folder, "x", base[1].sites, torch.float32, 64), base[1].sites, torch.float32
    )
    touched = [name for name, b in pool.b.items() if b.any()]
    assert len(touched) == 1 and "layers.0." in touched[0] and "gate_up_proj" in touched[0]
    b = pool.b[touched[0]]
    assert b[1].any() and not b[[0, 2, 3]].any()
    assert not b[1, :, b.shape[2] // 2 :].any(), "the rows of the up projection"


def test_experts_whose_rows_alternate_never_were_modules(tmp_path: Path) -> None:
    """Those of gpt-oss, where gate and up are no halves of the matrix."""
    folder = write_model(make_model("gpt_oss"), tmp_path / "base")
    base = read_base(folder, "auto").with_places(PLACES[1:])
    adapter = write(tmp_path / "x", "qwen3_moe", base)
    names = load_file(adapter / "adapter_model.safetensors")
    change(adapter, {name: None for name in names if ".gate." in name})
    assert "is not lora_A or lora_B of" in refused(adapter, (folder, base))
