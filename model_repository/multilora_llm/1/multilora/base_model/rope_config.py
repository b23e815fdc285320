"""RoPE as a checkpoint configures it: both layouts of config.json, checked. Pure.

transformers 5 writes `rope_parameters` {rope_type, rope_theta, …}; older versions wrote
`rope_theta` beside `rope_scaling` {rope_type or type, …}. `rope_scaling` wins where both stand,
as in transformers.
"""

import math
from dataclasses import dataclass

from multilora.base_model.json_fields import JsonFields

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeConfig:
    """Frequencies theta^(-2i/head_dim), scaled as `rope_type` says; see rope.inverse_frequencies.

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
    """The RoPE of a config.json with that `max_position_embeddings`; raises StartupError."""
    rope = config.fields("rope_scaling")
    if not rope.data:
        rope = config.fields("rope_parameters")
    if any(isinstance(value, dict) for value in rope.data.values()):
        raise config.error(rope.where, "differs between layer types, which is not supported")
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
