"""RoPE that follows the longest sequence of a batch is fixed at the longest that there can be."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from multilora.base_model.transformers_config import TransformersConfig
from multilora.base_model.transformers_rope import (
    is_dynamic,
    longest_sequence,
    rope_problem,
    ropes,
    varying_ropes,
    with_fixed_rope,
)
from multilora.forward.transformers_loading import load_transformers_decoder
from support.engine.passes import CPU, assert_same_logits
from support.tiny.families import make_model, write_model

KNOWN = 64  # positions of training
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": KNOWN,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1000.0}


def frequencies(rope: dict[str, Any], head_dim: int = 8) -> torch.Tensor:
    """Of RoPE of type default, by its definition (RoFormer)."""
    assert rope["rope_type"] == "default"
    rotated = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    return 1 / rope["rope_theta"] ** (torch.arange(0, rotated, 2) / rotated)


def dynamic(config: PretrainedConfig, total: int, layer_type: str | None = None) -> torch.Tensor:
    """As the library computes them for a sequence of that length."""
    function = ROPE_INIT_FUNCTIONS["dynamic"]
    found, _ = function(config, torch.device("cpu"), seq_len=total, layer_type=layer_type)
    return found


def llama(spelling: str, **more: Any) -> LlamaConfig:
    """As checkpoints of today and of before transformers 5 spell it."""
    if spelling == "rope_parameters":
        return LlamaConfig(**SIZES, rope_parameters=DYNAMIC | more)
    beside = {"rope_theta": DYNAMIC["rope_theta"]} | more
    scaling = {"type": "dynamic", "factor": DYNAMIC["factor"]}
    return LlamaConfig.from_dict(SIZES | beside | {"rope_scaling": scaling})


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("part", [1.0, 0.5])
@pytest.mark.parametrize("total", [40, KNOWN, 100])
def test_dynamic_rope_is_fixed_at_the_longest_sequence(
    total: int, part: float, spelling: str
) -> None:
    config = llama(spelling, partial_rotary_factor=part)
    before = copy.deepcopy(ropes(config))
    assert varying_ropes(config) == ["dynamic"]
    fixed = with_fixed_rope(config, total)
    (rope,) = ropes(fixed)
    found = frequencies(rope)
    assert len(found) == 4 * part
    torch.testing.assert_close(found, dynamic(config, total))
    assert varying_ropes(fixed) == []
    assert ropes(config) == before, "the argument stays as it is"


def test_the_layers_of_each_type_have_a_rope_of_their_own() -> None:
    plain = {"rope_type": "default", "rope_theta": 10.0}
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        **SIZES,
        head_dim=8,
        num_hidden_layers=2,
        layer_types=kinds,
        rope_parameters={"sliding_attention": plain, "full_attention": DYNAMIC},
    )
    assert varying_ropes(config) == ["dynamic"]
    fixed = dict(zip(kinds, ropes(with_fixed_rope(config, 100)), strict=True))
    assert fixed["sliding_attention"] == plain
    expected = dynamic(config, 100, "full_attention")
    torch.testing.assert_close(frequencies(fixed["full_attention"]), expected)


def phi(spelling: str) -> Phi3Config:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    before: dict[str, Any] = SIZES | {"original_max_position_embeddings": 16, "pad_token_id": 0}
    if spelling == "rope_parameters":
        rope = {"rope_type": "longrope", "rope_theta": 1000.0, **factors}
        return Phi3Config(**before, rope_parameters=rope)
    scaling = {"type": "longrope", **factors}
    return Phi3Config.from_dict(before | {"rope_theta": 1000.0, "rope_scaling": scaling})


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(("total", "factor"), [(16, 1.0), (17, 4.0)])
def test_longrope_has_the_factors_of_the_longest_sequence(
    total: int, factor: float, spelling: str
) -> None:
    config = phi(spelling)
    assert varying_ropes(config) == ["longrope"]
    fixed = with_fixed_rope(config, total)
    for length in (1, 16, 17, KNOWN):
        function = ROPE_INIT_FUNCTIONS["longrope"]
        found, scale = function(fixed, torch.device("cpu"), seq_len=length)
        expected = 1 / (factor * 1000.0 ** (torch.arange(0, 8, 2) / 8))
        torch.testing.assert_close(found, expected)
        assert scale == function(config, torch.device("cpu"), seq_len=length)[1]
    assert ropes(config) == ropes(phi(spelling)), "the argument stays as it is"


def test_a_model_computes_with_the_longrope_of_its_longest_sequence(tmp_path: Path) -> None:
    """All references are short of 64 tokens."""
    theirs = make_model("phi3-long", original_max_position_embeddings=64)
    base = TransformersConfig.from_folder(write_model(theirs, tmp_path))
    short, long = (
        load_transformers_decoder(tmp_path, base, torch.float32, CPU, total) for total in (64, 65)
    )
    assert_same_logits(theirs, short)
    with pytest.raises(AssertionError):
        assert_same_logits(theirs, long)


@pytest.mark.parametrize("total", [40, 200])
def test_a_model_computes_with_the_dynamic_rope_of_its_longest_sequence(
    total: int, tmp_path: Path
) -> None:
    """The reference's frequencies are those of its own longest sequence, below `known`: so they
    are for as long as no longer one is meant."""
    theirs = make_model("llama", rope_parameters=DYNAMIC, max_position_embeddings=KNOWN)
    base = TransformersConfig.from_folder(write_model(theirs, tmp_path))
    assert base.max_position_embeddings == 4 * KNOWN
    ours = load_transformers_decoder(tmp_path, base, torch.float32, CPU, total)
    if total <= KNOWN:
        assert_same_logits(theirs, ours)
    else:
        with pytest.raises(AssertionError):
            assert_same_logits(theirs, ours)


def test_a_fixed_stretch_of_rope_is_not_dynamic() -> None:
    """HunYuan calls it dynamic; its `alpha` holds for all lengths."""
    stretched = DYNAMIC | {"alpha": 1000.0}
    assert is_dynamic(DYNAMIC) and not is_dynamic(stretched)
    config = LlamaConfig(**SIZES, rope_parameters=stretched)
    assert varying_ropes(config) == []
    assert ropes(with_fixed_rope(config, 100)) == ropes(config)


@pytest.mark.parametrize(
    ("rope", "reached"),
    [
        ({"rope_type": "default"}, KNOWN),
        (DYNAMIC, 4 * KNOWN),
        (DYNAMIC | {"alpha": 1000.0}, KNOWN),
        ({"rope_type": "linear", "factor": 4.0}, KNOWN),
        ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}, 2 * KNOWN),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, KNOWN),
    ],
)
def test_what_a_scaling_reaches(rope: dict[str, Any], reached: int) -> None:
    config = LlamaConfig(**SIZES, rope_parameters={"rope_theta": 1000.0} | rope)
    assert longest_sequence(config, KNOWN) == reached


@pytest.mark.parametrize(
    ("rope", "wrong"),
    [
        (DYNAMIC, None),
        ({"rope_type": "default", "factor": None}, None),
        (DYNAMIC | {"factor": None}, "factor of RoPE is None"),
        (DYNAMIC | {"factor": [4.0]}, r"factor of RoPE is \[4.0\]"),
        (DYNAMIC | {"factor": -1}, "factor of RoPE is -1"),
        (DYNAMIC | {"factor": float("nan")}, "factor of RoPE is nan"),
        (DYNAMIC | {"rope_theta": 0.0}, "rope_theta of RoPE is 0.0"),
        (
            {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": "64"},
            "original_max_position_embeddings of RoPE is '64'",
        ),
    ],
)
def test_numbers_that_are_none(rope: dict[str, Any], wrong: str | None) -> None:
    """The library has taken the config by then."""
    config = LlamaConfig(**SIZES)
    config.rope_parameters = {"rope_theta": 1000.0} | rope
    found = rope_problem(config)
    assert (
        found == wrong if wrong is None else re.match(f"{wrong}; set it to a number", found or "")
    )
