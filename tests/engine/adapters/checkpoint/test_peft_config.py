"""adapter_config.json: what is refused, what is ignored, and PEFT's rule for patterns."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from peft.utils.other import get_pattern_key

from multilora.adapters.checkpoint.peft_config import AdapterConfig, parse_config
from multilora.errors import ErrorCode, RequestError

REFUSED_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "LOHA"}, "peft_type must be LORA, got 'LOHA'; convert"),
    ({"peft_type": None}, "peft_type must be LORA"),
    ({"use_dora": True}, "use_dora is set; DoRA"),
    ({"bias": "all"}, "bias must be 'none', got 'all'"),
    ({"bias": "lora_only"}, "bias must be 'none', got 'lora_only'"),
    ({"lora_bias": True}, "lora_bias is set"),
    ({"modules_to_save": {"lm_head": 1}}, "modules_to_save must be a list"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out is set; transposed"),
    ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is set"),
    ({"trainable_token_indices": {"embed_tokens": [1]}}, "trainable_token_indices is set"),
    ({"use_qalora": True}, "use_qalora is set"),
    ({"use_bdlora": {"nblocks": 2}}, "use_bdlora is set"),
    ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens is set; activated LoRA"),
    ({"arrow_config": {"top_k": 3}}, "arrow_config is set"),
    ({"kasa_config": {"beta": 0.1}}, "kasa_config is set"),
    ({"monteclora_config": {"num_samples": 8}}, "monteclora_config is set"),
    ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication is set"),
    ({"megatron_config": {"tp": 2}}, "megatron_config is set"),
    ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "OLoRA"}, "path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "lora_ga"}, "path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "newest"}, "init_lora_weights='newest' is not known"),
    (
        {"init_lora_weights": "loftq"},
        "save that one (unload() after the initialisation), name it in --model-id",
    ),
    ({"use_newest_trick": True}, "'use_newest_trick' is not known"),
    ({"newest_config": {"a": 1}}, "'newest_config' is not known"),
    ({"r": 0}, "r must be a positive integer, got 0"),
    ({"r": "8"}, "r must be a positive integer, got '8'"),
    ({"rank_pattern": {"v_proj": -1}}, "rank_pattern['v_proj'] must be a positive integer"),
    ({"rank_pattern": [8]}, "rank_pattern must be an object"),
    ({"lora_alpha": "16"}, "lora_alpha must be a finite number, got '16'"),
    ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number, got nan"),
    ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern['q_proj'] must be a finite number"),
]


@pytest.fixture(name="saved")
def saved_config(tmp_path: Path) -> dict[str, Any]:
    LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"]).save_pretrained(str(tmp_path))
    return json.loads((tmp_path / "adapter_config.json").read_bytes())


def parse(fields: dict[str, Any]) -> AdapterConfig:
    return parse_config(json.dumps(fields).encode())


@pytest.mark.parametrize(("fields", "reason"), REFUSED_FIELDS, ids=lambda value: str(value)[:60])
def test_refused_fields(saved: dict[str, Any], fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(saved | fields)
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert reason in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_dropout": 0.1, "inference_mode": False, "peft_version": "0.99.0"},
        {"velora_config": {"num_groups": 64}, "eva_config": {"rho": 2.0}},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"newest_group_size": 16, "newest_config": None, "use_newest": False, "newest_list": []},
    ],
    ids=str,
)
def test_fields_that_leave_the_arithmetic_alone_are_accepted(
    saved: dict[str, Any], fields: dict[str, Any]
) -> None:
    assert parse(saved | fields) == parse(saved)


def test_every_field_of_this_peft_is_known(saved: dict[str, Any]) -> None:
    """A new PEFT with a new feature must be looked at here, not refused by surprise."""
    for name in saved:
        try:
            parse(saved | {name: {"anything": 1}})
        except RequestError as error:
            assert "not known here and may change" not in error.message


def scalings(fields: dict[str, Any]) -> list[float]:
    modules = ["a.k_proj", "a.q_proj"]
    found = parse(fields).of_modules(modules)
    return [found[module].scaling for module in modules]


def test_scaling() -> None:
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "alpha_pattern": {"q_proj": 8}}
    assert scalings(fields) == [1.5, 2.0]
    assert scalings(fields | {"use_rslora": True}) == [3.0, 4.0]
    assert scalings(fields | {"rank_pattern": {"q_proj": 16}}) == [1.5, 0.5]


def test_patterns_match_as_in_peft() -> None:
    keys = (
        "q_proj", "_proj", "self_attn.q_proj", r"layers\.1\.mlp\..*", "^model.layers.0.*",
        "layers.[02].self_attn.(k|v)_proj", "proj|q_proj", "model", ".*down_proj", "1.mlp.up_proj",
    )  # fmt: skip
    modules = [
        f"{prefix}layers.{layer}.{module}"
        for prefix in ("model.", "", "model.language_model.")
        for layer in (0, 1, 2, 10, 11)
        for module in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    for start in range(len(keys)):
        pattern = {key: rank for rank, key in enumerate(keys[start:], start=1)}
        fields = {"peft_type": "LORA", "r": 99, "rank_pattern": pattern}
        configs = parse(fields).of_modules(modules)
        for module in modules:
            expected = pattern.get(get_pattern_key(list(pattern), module), 99)
            assert configs[module].rank == expected


MODULE = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rank_pattern": {"v_(": 8}}, r"rank_pattern key 'v_\(' is not a regular expression"),
        ({"alpha_pattern": {"(" * 9999: 8}}, "alpha_pattern key .* is not a regular expression"),
        ({"rank_pattern": {".?" * 40 + "X": 8}}, "take too long to match; write out"),
        ({"alpha_pattern": {"(_|[a-z]|.)" * 30 + "X": 8}}, "take too long to match; write out"),
        ({"alpha_pattern": {"([a-z_.0-9]+)+X": 8}}, "rank_pattern and alpha_pattern take too long"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_patterns_that_cannot_be_matched(fields: dict[str, Any], reason: str) -> None:
    """Some of them would take years, and stop every other thread of the server."""
    config = parse({"peft_type": "LORA", **fields})
    with pytest.raises(RequestError, match=reason) as caught:
        config.of_modules([MODULE * 3])
    assert caught.value.code is ErrorCode.INVALID_ARG and len(caught.value.message) < 300


def test_patterns_that_repeat_are_matched() -> None:
    config = parse({"peft_type": "LORA", "rank_pattern": {"(.*[._])+q_(proj)+": 3}})
    assert config.of_modules([MODULE])[MODULE].rank == 3
