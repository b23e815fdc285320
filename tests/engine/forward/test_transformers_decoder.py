"""A class of transformers over our paged cache equals that class alone, however work is batched."""

from pathlib import Path

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration
from transformers.models.llama import modeling_llama

from multilora.base_model.config import NativeConfig
from multilora.base_model.transformers_config import TransformersConfig
from multilora.forward.base_model import KVCache
from multilora.forward.decoder import load_decoder
from multilora.forward.transformers_decoder import TransformersDecoder
from multilora.forward.transformers_loading import load_transformers_decoder
from support.engine.passes import (
    BLOCK_SIZE,
    CPU,
    NUM_BLOCKS,
    assert_same_logits,
    eager,
    replayed,
    run_steps,
)
from support.kernels.cases import DEVICE
from support.tiny.families import FAMILIES, make_model, randomised, write_model


def load(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> TransformersDecoder:
    base = TransformersConfig.from_folder(folder)
    return load_transformers_decoder(folder, base, dtype, device, base.max_position_embeddings)


@pytest.mark.parametrize("variant", ["llama-biases", "qwen3", *FAMILIES])
def test_logits_equal_those_of_the_class_alone(variant: str, tmp_path: Path) -> None:
    theirs = make_model(variant)
    assert_same_logits(theirs, load(write_model(theirs, tmp_path)))


def test_a_native_family_is_the_same_either_way(tmp_path: Path) -> None:
    folder = write_model(make_model("qwen2-layer-types"), tmp_path)
    native = load_decoder(folder, NativeConfig.from_folder(folder), torch.float32, CPU)
    found = []
    for model in (native, load(folder)):
        kv = KVCache(model.base, NUM_BLOCKS, BLOCK_SIZE, torch.float32, CPU)
        steps = run_steps(eager(model, kv))
        found.append(torch.cat([row for rows in steps.values() for row in rows]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", ["deepseek_v3", "gemma2"])
def test_memory_is_planned_for_the_values_as_they_are(variant: str, tmp_path: Path) -> None:
    make_model(variant).config.save_pretrained(tmp_path)
    base = TransformersConfig.from_folder(tmp_path)
    kv = KVCache(base, 3, BLOCK_SIZE, torch.bfloat16, CPU)
    planned = 3 * KVCache.bytes_per_block(base, BLOCK_SIZE, torch.bfloat16)
    assert kv.k.nbytes + kv.v.nbytes == planned


def test_the_text_part_of_a_model_for_images(tmp_path: Path) -> None:
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    text = make_model("gemma3").config.to_dict()
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    theirs = Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager")
    assert_same_logits(theirs, load(write_model(randomised(theirs.eval()), tmp_path)))


@pytest.mark.parametrize("variant", ["gemma2", "qwen3_moe", "gpt_oss"])
def test_replayed_passes(variant: str, tmp_path: Path) -> None:
    theirs = make_model(variant)
    device = torch.device(DEVICE if torch.cuda.is_available() else "cpu")
    model = load(write_model(theirs, tmp_path), device=device)
    assert_same_logits(theirs, model, device=device, way=replayed)


def test_rope_may_widen_queries_and_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    turned = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(
        modeling_llama, "apply_rotary_pos_emb", lambda *given: [x.float() for x in turned(*given)]
    )
    theirs = make_model("llama").bfloat16()
    model = load(write_model(theirs, tmp_path), torch.bfloat16)
    assert_same_logits(theirs.float(), model, torch.bfloat16, tolerance=0.1)


@pytest.mark.parametrize("variant", ["gemma2", "phi3"])
def test_bfloat16_stays_close(variant: str, tmp_path: Path) -> None:
    theirs = make_model(variant).bfloat16()
    model = load(write_model(theirs, tmp_path), torch.bfloat16)
    assert_same_logits(theirs.float(), model, torch.bfloat16, tolerance=0.1)
