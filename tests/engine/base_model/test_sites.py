"""The table of sites: where adapters can act in each architecture, as transformers builds it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multilora.base_model.config import NativeConfig
from multilora.base_model.sites import TABLES, LoRASite, Rows, Slice, modules, short_names
from multilora.lora.rank_pages import bytes_per_page
from multilora_kernels.segments import PAGE_RANK
from support.tiny.base import LAYERS, SHAPES, write_base
from support.tiny.families import VARIANTS, make_model


@pytest.fixture(name="base")
def base_config(tmp_path: Path) -> NativeConfig:
    return NativeConfig.from_folder(write_base(tmp_path))


def test_the_table_of_a_config(base: NativeConfig) -> None:
    """Llama with 4 heads and 2 KV heads of 16 numbers, 64 hidden and 96 inner ones."""
    attention, mlp = "model.layers.1.self_attn", "model.layers.1.mlp"
    assert base.sites[4:] == (
        LoRASite(
            "layers.1.qkv",
            1,
            64,
            (
                Slice(f"{attention}.q_proj", 64),
                Slice(f"{attention}.k_proj", 32),
                Slice(f"{attention}.v_proj", 32),
            ),
        ),
        LoRASite("layers.1.o", 1, 64, (Slice(f"{attention}.o_proj", 64),)),
        LoRASite(
            "layers.1.gate_up", 1, 64, (Slice(f"{mlp}.gate_proj", 96), Slice(f"{mlp}.up_proj", 96))
        ),
        LoRASite("layers.1.down", 1, 96, (Slice(f"{mlp}.down_proj", 64),)),
    )
    assert [site.layer for site in base.sites] == [0] * 4 + [1] * 4
    assert all(site.rows is Rows.ALL for site in base.sites)
    assert len({site.name for site in base.sites}) == len(base.sites)


def test_tables_are_places_where_somebody_uses_them(base: NativeConfig) -> None:
    """Tied ones have the same weight."""
    embedding = LoRASite(
        "embed_tokens",
        None,
        128,
        (Slice("model.embed_tokens", 64),),
        takes_ids=True,
        twin="lm_head",
    )
    head = LoRASite(
        "lm_head", None, 64, (Slice("lm_head", 128),), rows=Rows.SAMPLED, twin="model.embed_tokens"
    )
    both = base.with_places(["lm_head", "embed_tokens", "q_proj"])
    assert both.adapted == TABLES, "in their order"
    assert both.sites == (embedding, *base.sites, head)
    assert both.layer_sites == base.layer_sites == base.sites
    assert both.site("lm_head") == head and base.site("lm_head") is None
    assert both.site("model.layers.0.mlp.up_proj") == base.sites[2]
    one = base.with_places(["embed_tokens"])
    assert one.sites == (embedding, *base.sites)
    assert both.adapts_sampled and not one.adapts_sampled
    assert bytes_per_page([embedding], torch.float32) == (128 + 64) * PAGE_RANK * 4
    untied = dataclasses.replace(both, tie_word_embeddings=False)
    assert [site.twin for site in untied.sites] == [""] * len(untied.sites)
    assert short_names(both.sites) == ["embed_tokens", *short_names(base.sites), "lm_head"]


def test_bias_flags_follow_the_config(base: NativeConfig) -> None:
    biased = dataclasses.replace(base, qkv_bias=True, mlp_bias=True)
    assert [site.has_bias for site in biased.sites] == [True, False, True, True] * LAYERS
    assert not any(site.has_bias for site in base.sites)


def test_sizes_of_a_site(base: NativeConfig) -> None:
    qkv, o, *_ = base.sites
    assert (qkv.slice_sizes, qkv.out_features) == ((64, 32, 32), 128)
    assert qkv.numbers_per_rank == 3 * 64 + 128
    assert (o.slice_sizes, o.out_features, o.numbers_per_rank) == ((64,), 64, 128)


def test_modules_lead_to_their_places_in_order(base: NativeConfig) -> None:
    found = modules(base.sites)
    assert list(found) == [f"model.layers.{i}.{name}" for i in range(LAYERS) for name in SHAPES]
    for path, (site, part) in found.items():
        assert part in site.slices and part.module == path and site in base.sites


def test_short_names_stand_once_in_order(base: NativeConfig) -> None:
    assert short_names(base.sites) == [name.rpartition(".")[2] for name in SHAPES]
    assert short_names(base.sites[1:2]) == ["o_proj"]
    assert short_names(()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_per_rank_make_the_bytes_of_a_page(base: NativeConfig, dtype: torch.dtype) -> None:
    per_rank = LAYERS * sum(out + in_ for out, in_ in SHAPES.values())  # a row of A, one of Bᵀ
    assert sum(site.numbers_per_rank for site in base.sites) == per_rank
    assert bytes_per_page(base.sites, dtype) == per_rank * PAGE_RANK * dtype.itemsize


def test_the_checkpoint_holds_every_module_in_its_shape(base: NativeConfig, tmp_path: Path) -> None:
    tensors = load_file(tmp_path / "model.safetensors")
    for path, (site, part) in modules(base.sites).items():
        assert tensors[f"{path}.weight"].shape == (part.out_features, site.in_features)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_is_every_linear_module_of_the_decoder(variant: str, tmp_path: Path) -> None:
    theirs = make_model(variant)
    theirs.config.save_pretrained(tmp_path)
    linear = {
        name: (module.in_features, module.out_features, module.bias is not None)
        for name, module in theirs.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    ours = modules(NativeConfig.from_folder(tmp_path).sites)
    assert linear == {
        path: (site.in_features, part.out_features, site.has_bias)
        for path, (site, part) in ours.items()
    }
