"""A class of transformers over our paged cache equals that class alone, however work is batched."""

from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    PreTrainedModel,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from multilora.base_model.config import NativeConfig, ropes
from multilora.base_model.transformers_config import TransformersConfig
from multilora.forward.base_model import KVCache
from multilora.forward.decoder import load_decoder
from multilora.forward.transformers_decoder import TransformersDecoder
from multilora.forward.transformers_loading import load_transformers_decoder, with_fixed_rope
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
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    total: int | None = None,
) -> TransformersDecoder:
    base = TransformersConfig.from_folder(folder)
    return load_transformers_decoder(
        folder, base, dtype, device, total or base.max_position_embeddings
    )


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


def test_longrope_is_chosen_by_the_longest_sequence(tmp_path: Path) -> None:
    """All references are short of 64 tokens; phi3-long, above, has none as short as 4."""
    theirs: PreTrainedModel = make_model("phi3-long", original_max_position_embeddings=64)
    folder = write_model(theirs, tmp_path)
    assert_same_logits(theirs, load(folder, total=64))
    with pytest.raises(AssertionError):
        assert_same_logits(theirs, load(folder, total=65))


@pytest.mark.parametrize("variant", ["gemma2", "phi3"])
def test_bfloat16_stays_close(variant: str, tmp_path: Path) -> None:
    theirs = make_model(variant).bfloat16()
    model = load(write_model(theirs, tmp_path), torch.bfloat16)
    assert_same_logits(theirs.float(), model, torch.bfloat16, tolerance=0.1)


@pytest.mark.parametrize("total", [40, 64, 100])
def test_dynamic_rope_is_fixed_at_the_longest_sequence(total: int) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1000.0}
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=4, max_position_embeddings=64, rope_parameters=rope
    )
    fixed = with_fixed_rope(config, total)
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=total)
    (rope,) = ropes(fixed)
    assert rope["rope_type"] == "default"
    found = 1 / rope["rope_theta"] ** (torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(found, expected)
    assert ropes(config)[0]["rope_type"] == "dynamic", "the argument stays as it is"
