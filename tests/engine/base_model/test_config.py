"""NativeConfig: what transformers writes, old and new, and refusals that say what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from multilora.base_model.config import NativeConfig, RopeConfig
from multilora.errors import StartupError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 7,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 128}


def read(folder: Path, **changes: Any) -> NativeConfig:
    """LLAMA with `changes`; a field changed to ... is left out."""
    config = {name: value for name, value in (LLAMA | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return NativeConfig.from_folder(folder)


def architecture(name: str) -> dict[str, Any]:
    return {"architectures": [f"{name}ForCausalLM"], "model_type": name.lower()}


def test_modules_and_sites(tmp_path: Path) -> None:
    base = read(tmp_path, head_dim=32)
    of_layer = base.sites[:4]
    assert {
        part.short_name: (site.in_features, part.out_features)
        for site in of_layer
        for part in site.slices
    } == {
        "q_proj": (64, 128),
        "k_proj": (64, 64),
        "v_proj": (64, 64),
        "o_proj": (128, 64),
        "gate_proj": (64, 96),
        "up_proj": (64, 96),
        "down_proj": (96, 64),
    }
    assert [site.in_features for site in of_layer] == [64, 128, 64, 96]
    assert [site.slice_sizes for site in of_layer] == [(128, 64, 64), (64,), (96, 96), (64,)]


def test_absent_fields_take_the_defaults_of_the_architecture(tmp_path: Path) -> None:
    old = {"num_key_value_heads": ..., "max_position_embeddings": ...}
    base = read(tmp_path, **old)
    assert (base.num_kv_heads, base.head_dim, base.max_position_embeddings) == (4, 16, 2048)
    assert (base.rms_norm_eps, base.dtype, base.tie_word_embeddings) == (1e-6, "float32", False)
    assert base.rope == RopeConfig()
    mistral = architecture("Mistral") | {"num_attention_heads": 16, "num_key_value_heads": ...}
    base = read(tmp_path, **mistral)
    assert (base.num_kv_heads, base.layer_windows) == (8, (4096,) * 3)
    assert read(tmp_path, **mistral | {"num_key_value_heads": None}).num_kv_heads == 16
    assert read(tmp_path, **architecture("Qwen3")).head_dim == 128


def test_biases_and_norms(tmp_path: Path) -> None:
    def biased(name: str, **changes: Any) -> tuple[bool, ...]:
        base = read(tmp_path, **architecture(name) | changes)
        layers = [tuple(site.has_bias for site in base.sites[i : i + 4]) for i in (0, 4, 8)]
        assert layers == [layers[0]] * 3
        return layers[0]

    assert biased("Llama") == (False, False, False, False)
    assert biased("Llama", attention_bias=True, mlp_bias=True) == (True, True, True, True)
    assert biased("Mistral") == (False, False, False, False)
    assert biased("Qwen2") == (True, False, False, False)
    assert biased("Qwen3", attention_bias=True) == (True, True, False, False)
    assert read(tmp_path, **architecture("Qwen3")).qk_norm
    assert not read(tmp_path, **architecture("Qwen2")).qk_norm


def test_windows(tmp_path: Path) -> None:
    def windows(name: str, **changes: Any) -> tuple[int | None, ...]:
        return read(tmp_path, **architecture(name) | changes).layer_windows

    assert windows("Mistral", sliding_window=16) == (16, 16, 16)
    assert windows("Mistral", sliding_window=None) == (None, None, None)
    assert windows("Llama", sliding_window=16) == (None, None, None)
    assert windows("Qwen2", sliding_window=16) == (None, None, None)
    on = {"use_sliding_window": True, "sliding_window": 16}
    assert windows("Qwen2", **on, max_window_layers=2) == (None, None, 16)
    assert windows("Qwen3", **on) == (None, None, None)
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows("Qwen3", **on, layer_types=types) == (16, None, 16)
    with pytest.raises(StartupError, match=r"layer_types must name .* each of 3 layers"):
        windows("Qwen3", **on, layer_types=types[:2])


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default"}, RopeConfig(theta=5e5)),
        ({"type": "linear", "factor": 2}, RopeConfig("linear", 5e5, 2.0)),
        ({"rope_type": "llama3"} | LLAMA3, RopeConfig("llama3", 5e5, 8.0, 64)),
        (
            {"type": "yarn", "attention_factor": 1.5} | YARN,
            RopeConfig("yarn", 5e5, 4.0, 128, attention_factor=1.5),
        ),
    ],
)
def test_rope_in_both_layouts(tmp_path: Path, rope: dict[str, Any], expected: RopeConfig) -> None:
    assert read(tmp_path, rope_theta=5e5, rope_scaling=rope).rope == expected
    assert read(tmp_path, rope_parameters={**rope, "rope_theta": 5e5}).rope == expected
    old_wins = read(tmp_path, rope_theta=5e5, rope_scaling=rope, rope_parameters={"factor": 9})
    assert old_wins.rope == expected


def test_yarn_lengthens_the_context(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn"} | YARN
    assert read(tmp_path, rope_scaling=rope).max_position_embeddings == 512
    assert read(tmp_path).max_position_embeddings == 128


def test_dtype_in_both_layouts(tmp_path: Path) -> None:
    assert read(tmp_path, dtype="bfloat16").dtype == "bfloat16"
    assert read(tmp_path, torch_dtype="float16").dtype == "float16"
    with pytest.raises(StartupError, match=r"dtype 'float64' is not supported; supported: float32"):
        read(tmp_path, dtype="float64")


def test_architecture_follows_from_the_model_type(tmp_path: Path) -> None:
    base = read(tmp_path, architectures=..., model_type="qwen2")
    assert base.architecture == "Qwen2ForCausalLM"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "'GemmaForCausalLM' is not .* Qwen3ForCausalLM"),
        ({"architectures": ..., "model_type": "gpt2"}, "'gpt2' is not supported"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of strings"),
        ({"num_local_experts": 8}, "mixture-of-experts models are not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: silu"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"vocab_size": "100"}, "vocab_size must be a whole number of at least 1; got '100'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number of at least 1"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 must divide 4 heads"),
        ({"hidden_size": 66}, "hidden_size 66 is no multiple of 4 heads"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number"),
        ({"attention_bias": 1}, "attention_bias must be true or false"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "dynamic"}}, "'dynamic' is not .* default, linear, llama3, yar"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor is missing"),
        ({"rope_parameters": {"full_attention": {}}}, "differs between layer types"),
        ({"partial_rotary_factor": 0.5}, "partial RoPE is not supported"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message) as caught:
        read(tmp_path, **changes)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"folder .*absent does not exist; check --model-id"):
        NativeConfig.from_folder(tmp_path / "absent")
    with pytest.raises(StartupError, match=r"has no config.json; --model-id must name"):
        NativeConfig.from_folder(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(StartupError, match="it is an adapter, for --lora-adapters"):
        NativeConfig.from_folder(tmp_path)
    for text, problem in (("{", "not valid JSON"), ("[]", "must hold a JSON object; got list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(StartupError, match=problem):
            NativeConfig.from_folder(tmp_path)
