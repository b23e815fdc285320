"""NativeConfig: what the native decoder reads of a Hugging Face checkpoint folder. Pure.

The native decoder serves four architectures that differ only in biases, QK norm, windows and
defaults. Absent fields take the defaults of the transformers configuration class.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from multilora.base_model.sites import BaseConfig, LoRASite, Slice
from multilora.errors import StartupError, lfs_problem
from multilora.json_fields import JsonFields

SINGLE = "model.safetensors"  # the weights, if they are not in the files that INDEX names
INDEX = "model.safetensors.index.json"
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeConfig:
    """Frequencies theta^(-2i/head_dim), scaled as `rope_type` says (forward/decoder.py).

    `factor` stretches positions (linear, llama3, yarn). `original_max_positions` is the length of
    pre-training (llama3, yarn). `attention_factor` multiplies cos and sin (1 except for yarn).
    """

    rope_type: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    @property
    def max_positions(self) -> int:
        """Positions that the scaling reaches by itself; 0 = says nothing about it."""
        return int(self.original_max_positions * self.factor) if self.rope_type == "yarn" else 0


def read_rope(config: JsonFields, max_positions: int) -> RopeConfig:
    """The RoPE of a config.json with that `max_position_embeddings`; raises StartupError.

    transformers 5 writes `rope_parameters` {rope_type, rope_theta, …}; older versions wrote
    `rope_theta` beside `rope_scaling` {rope_type or type, …}. `rope_scaling` wins where both stand,
    as in transformers.
    """
    rope = config.fields("rope_scaling")
    if not rope.data:
        rope = config.fields("rope_parameters")
    if any(isinstance(value, dict) for value in rope.data.values()):
        raise config.error(
            rope.where,
            "differs between layer types, which is not supported; serve a base model with one RoPE",
        )
    rope_type = rope.text("rope_type", rope.text("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise rope.error(
            "rope_type", f"{rope_type!r} is not supported; supported: {', '.join(ROPE_TYPES)}"
        )
    for fields in (config, rope):
        if fields.number("partial_rotary_factor", 1.0) != 1:
            raise fields.error("partial_rotary_factor", "must be 1; partial RoPE is not supported")
    theta = rope.number("rope_theta", config.number("rope_theta", 10000.0))
    if rope_type == "default":
        return RopeConfig(theta=theta)
    if rope_type == "linear":
        return RopeConfig("linear", theta, rope.number("factor"))
    original = config.integer(
        "original_max_position_embeddings",
        rope.integer("original_max_position_embeddings", max_positions),
    )
    if rope_type == "llama3":
        return _llama3(rope, theta, original)
    return _yarn(rope, theta, original, max_positions)


def _llama3(rope: JsonFields, theta: float, original: int) -> RopeConfig:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.error("high_freq_factor", f"must be above low_freq_factor {low}; got {high}")
    return RopeConfig(
        "llama3",
        theta,
        rope.number("factor"),
        original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(rope: JsonFields, theta: float, original: int, max_positions: int) -> RopeConfig:
    factor = rope.number("factor", max_positions / original)
    if "attention_factor" in rope:
        attention_factor = rope.number("attention_factor")
    elif rope.data.get("mscale") and rope.data.get("mscale_all_dim"):
        numerator = _yarn_scale(factor, rope.number("mscale"))
        attention_factor = numerator / _yarn_scale(factor, rope.number("mscale_all_dim"))
    else:
        attention_factor = _yarn_scale(factor, 1.0)
    return RopeConfig(
        "yarn",
        theta,
        factor,
        original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.boolean("truncate", True),
        attention_factor=attention_factor,
    )


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


DTYPES = ("float32", "bfloat16", "float16")
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_DEFAULT_KV_HEADS = {"MistralForCausalLM": 8, "Qwen2ForCausalLM": 32, "Qwen3ForCausalLM": 32}
_SILU = ("silu", "swish")
_EXPERT_FIELDS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class NativeConfig(BaseConfig):
    """What the native decoder reads besides. Filled by from_folder.

    `layer_windows[i]` is how many last positions (the query's own included) layer i attends to,
    None for all.
    """

    intermediate_size: int
    rms_norm_eps: float
    rope: RopeConfig
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    layer_windows: tuple[int | None, ...]

    @staticmethod
    def from_folder(path: str | Path) -> "NativeConfig":
        """Read config.json; StartupError names file, field, remedy."""
        return _read(config_json(path))

    @staticmethod
    def fits(path: str | Path) -> bool:
        """Whether the native decoder is for the architecture and the RoPE in that folder."""
        config = config_json(path)
        rope = config.fields("rope_scaling").data or config.fields("rope_parameters").data
        kind = rope.get("rope_type", rope.get("type", "default"))
        shares = (fields.get("partial_rotary_factor") for fields in (config.data, rope))
        per_layer = any(isinstance(value, dict) for value in rope.values())
        known = kind in ROPE_TYPES and not per_layer and all(share in (None, 1) for share in shares)
        experts = any(field in config for field in _EXPERT_FIELDS)
        silu = config.data.get("hidden_act") in (None, *_SILU)
        return known and silu and not experts and _name(config) in _ARCHITECTURES.values()

    def _sites_of_layers(self) -> Iterator[LoRASite]:
        for layer in range(self.num_layers):
            yield from self._layer_sites(layer)

    def _layer_sites(self, layer: int) -> Iterator[LoRASite]:
        hidden, inner = self.hidden_size, self.intermediate_size
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim

        def site(name: str, in_features: int, bias: bool, **out_features: int) -> LoRASite:
            block = "mlp" if name in ("gate_up", "down") else "self_attn"
            slices = (
                Slice(f"model.layers.{layer}.{block}.{module}", size)
                for module, size in out_features.items()
            )
            return LoRASite(f"layers.{layer}.{name}", layer, in_features, tuple(slices), bias)

        yield site("qkv", hidden, self.qkv_bias, q_proj=heads, k_proj=kv_heads, v_proj=kv_heads)
        yield site("o", heads, self.o_bias, o_proj=hidden)
        yield site("gate_up", hidden, self.mlp_bias, gate_proj=inner, up_proj=inner)
        yield site("down", inner, self.mlp_bias, down_proj=hidden)


def check_base_folder(folder: Path) -> None:
    """StartupError for a folder that holds no base model."""
    if (folder / "config.json").is_file():
        return _check_no_pointers(folder)
    remedy = "--model-id must name a Hugging Face checkpoint"
    if (folder / "adapter_config.json").is_file():
        remedy = (
            "it is an adapter, for --lora-adapters NAME=FOLDER; --model-id names its base model"
        )
    raise StartupError(f"{folder} has no config.json; {remedy}")


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor → the file of `folder` that its INDEX says it is in; raises StartupError."""
    fields = JsonFields.read(folder / INDEX).fields("weight_map")
    for name, file in fields.data.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise fields.error(name, f"must be a file name; got {file!r}")
    return fields.data


def _check_no_pointers(folder: Path) -> None:
    """StartupError when git has cloned the folder without its large files."""
    for path in (*sorted(folder.glob("model*.safetensors")), folder / "tokenizer.json"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if problem := lfs_problem(file.read(64)):
                raise StartupError(f"{path} {problem}")


def config_json(path: str | Path) -> JsonFields:
    """Of a base model's folder; raises StartupError."""
    folder = Path(path)
    if not folder.is_dir():
        raise StartupError(f"base model folder {folder} does not exist; check --model-id")
    check_base_folder(folder)
    return JsonFields.read(folder / "config.json")


def _read(config: JsonFields) -> NativeConfig:
    architecture = _architecture(config)
    _refuse_unsupported(config)
    hidden_size = config.integer("hidden_size")
    num_layers = config.integer("num_hidden_layers")
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", _default_kv_heads(config, architecture))
    if num_heads % num_kv_heads:
        raise config.error("num_key_value_heads", f"{num_kv_heads} must divide {num_heads} heads")
    max_positions = config.integer("max_position_embeddings", 2048)
    rope = read_rope(config, max_positions)
    qwen2, mistral = architecture == "Qwen2ForCausalLM", architecture == "MistralForCausalLM"
    attention_bias = not mistral and config.boolean("attention_bias", False)
    return NativeConfig(
        architecture=architecture,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(config, architecture, hidden_size, num_heads),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        rope=rope,
        max_position_embeddings=max(max_positions, rope.max_positions),
        tie_word_embeddings=config.boolean("tie_word_embeddings", False),
        qkv_bias=qwen2 or attention_bias,
        o_bias=not qwen2 and attention_bias,
        mlp_bias=architecture == "LlamaForCausalLM" and config.boolean("mlp_bias", False),
        qk_norm=architecture == "Qwen3ForCausalLM",
        layer_windows=_layer_windows(config, architecture, num_layers),
        dtype=_dtype(config),
    )


def _name(config: JsonFields) -> str:
    """The first of `architectures`, or the one that `model_type` implies."""
    named = config.strings("architectures")
    model_type = config.text("model_type", "")
    return named[0] if named else _ARCHITECTURES.get(model_type, model_type)


def _architecture(config: JsonFields) -> str:
    """One of those of the native decoder."""
    supported = ", ".join(_ARCHITECTURES.values())
    if any(field in config for field in _EXPERT_FIELDS):
        raise StartupError(
            f"{config.file}: mixture-of-experts models are not supported; supported: {supported}"
        )
    name = _name(config)
    if name not in _ARCHITECTURES.values():
        raise config.error("architectures", f"{name!r} is not supported; supported: {supported}")
    return name


def _refuse_unsupported(config: JsonFields) -> None:
    activation = config.text("hidden_act", "silu")
    if activation not in _SILU:
        raise config.error("hidden_act", f"{activation!r} is not supported; supported: silu")


def _default_kv_heads(config: JsonFields, architecture: str) -> int:
    """null means one KV head per head; an absent field has a default of its own."""
    if "num_key_value_heads" in config.data:
        return config.integer("num_attention_heads")
    return _DEFAULT_KV_HEADS.get(architecture) or config.integer("num_attention_heads")


def _head_dim(config: JsonFields, architecture: str, hidden_size: int, num_heads: int) -> int:
    implied = 128 if architecture == "Qwen3ForCausalLM" else hidden_size // num_heads
    if "head_dim" not in config and architecture != "Qwen3ForCausalLM" and hidden_size % num_heads:
        raise config.error("hidden_size", f"{hidden_size} is no multiple of {num_heads} heads")
    head_dim = config.integer("head_dim", implied)
    if head_dim % 2:
        raise config.error("head_dim", f"must be even for RoPE; got {head_dim}")
    return head_dim


def _layer_windows(
    config: JsonFields, architecture: str, num_layers: int
) -> tuple[int | None, ...]:
    if architecture == "LlamaForCausalLM":
        return (None,) * num_layers
    # null switches the window off; an absent field means the default of 4096
    off = "sliding_window" in config.data and config.data["sliding_window"] is None
    window = None if off else config.integer("sliding_window", 4096)
    if architecture == "MistralForCausalLM":
        return (window,) * num_layers
    if not config.boolean("use_sliding_window", False):
        return (None,) * num_layers
    types = config.strings("layer_types")
    if not types:
        first = config.integer("max_window_layers", 28, minimum=0)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if len(types) != num_layers or not set(types) <= {"full_attention", "sliding_attention"}:
        raise config.error(
            "layer_types",
            f"must name full_attention or sliding_attention for each of {num_layers} layers",
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _dtype(config: JsonFields) -> str:
    name = config.text("dtype", config.text("torch_dtype", "float32")).removeprefix("torch.")
    if name not in DTYPES:
        raise config.error("dtype", f"{name!r} is not supported; supported: {', '.join(DTYPES)}")
    return name
