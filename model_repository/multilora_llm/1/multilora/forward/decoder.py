"""Decoder: Llama, Mistral, Qwen2 and Qwen3 over a paged KV cache, with LoRA; see BaseModel.

The batch is an argument: rows of many sequences, prefill and decode mixed, each row with the
adapter that `segments` gives it. As in PEFT, an adapter acts on a projection's output before QK
norm and RoPE. The table of RoPE, which rope_kv_write applies, for d < D/2, position p, frequency f:

    y[d]       = x[d]·cos(p·f[d]) - x[d + D/2]·sin(p·f[d])
    y[d + D/2] = x[d + D/2]·cos(p·f[d]) + x[d]·sin(p·f[d])

the half-split layout of Hugging Face checkpoints. Sources: RoFormer (arXiv 2104.09864), YaRN (arXiv
2309.00071), the Llama 3.1 model card.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from multilora.base_model.config import NativeConfig, RopeConfig
from multilora.base_model.sites import EMBEDDING, HEAD
from multilora.base_model.weights import DenseWeight, LayerNorms, Weights, load_weights, packed
from multilora.forward.base_model import BaseModel, Hidden, Step
from multilora.lora.linear import BatchLoRA, Linear
from multilora_kernels.rms_norm import rms_norm
from multilora_kernels.rope_kv_write import rope_kv_write
from multilora_kernels.swiglu import swiglu


@dataclass(frozen=True, eq=False)
class _Layer:
    """One decoder layer."""

    index: int
    window: int | None  # see NativeConfig.layer_windows
    norms: LayerNorms
    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear


class Decoder(BaseModel):
    """Filled by load_decoder; the table of RoPE is on the device, too."""

    def __init__(self, base: NativeConfig, weights: Weights, device: torch.device) -> None:
        super().__init__(base, weights.quantised)
        self._eps = base.rms_norm_eps
        self._embed, self._embed_site = weights.embed, base.site(EMBEDDING)
        self._layers = _layers(base, weights)
        self._norm = weights.norm
        self._head_site = base.site(HEAD)
        self._lm_head = packed(DenseWeight(weights.lm_head, None))
        self._rope = rope_table(
            base.rope, base.head_dim, base.max_position_embeddings, weights.embed.dtype, device
        )

    def _logits(self, hidden: Hidden, lora: BatchLoRA | None) -> torch.Tensor:
        x = rms_norm(hidden.x, self._norm, self._eps, hidden.rest)
        logits = self._lm_head.multiply(x)
        if self._head_site and lora:
            lora.add(logits, x, self._head_site)
        return logits

    def _hidden(self, step: Step) -> Hidden:
        inputs, lora, eps = step.inputs, step.lora, self._eps
        rope = self._rope.index_select(0, inputs.positions)
        x = F.embedding(inputs.input_ids, self._embed)
        if self._embed_site and lora:
            lora.add(x, inputs.input_ids, self._embed_site)
        rest = None  # of x: what the adapters of the last site still have to add
        for layer in self._layers:
            normed = rms_norm(x, layer.norms.attention, eps, rest)
            rest = layer.o.add_to(x, self._attention(layer, normed, rope, step), lora)
            gate_up = layer.gate_up.project_wide(rms_norm(x, layer.norms.mlp, eps, rest), lora)
            rest = layer.down.add_to(x, swiglu(*gate_up), lora)
        return Hidden(x, rest)

    def _attention(
        self, layer: _Layer, x: torch.Tensor, rope: torch.Tensor, step: Step
    ) -> torch.Tensor:
        """[T, heads * head_dim], before the output projection. `rope` [T, 2, head_dim] are the rows
        of the table."""
        base = self.base
        qkv = layer.qkv.project(x, step.lora)
        unpaged = step.takes_rows(qkv.y, layer.window)
        q = rope_kv_write(
            qkv.y,
            rope,
            step.inputs.kv_slots,
            step.kv.k[layer.index],
            step.kv.v[layer.index],
            base.num_heads,
            base.num_kv_heads,
            layer.norms.qk,
            self._eps,
            qkv.delta,
            unpaged,
        )
        rows = self._new_kv(qkv.y) if unpaged else None
        attended = step.attend(layer.index, q, base.head_dim**-0.5, layer.window, rows)
        return attended.reshape(x.shape[0], -1)

    def _new_kv(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [T, kv_heads, head_dim] of the rows, views."""
        count = self.base.num_kv_heads
        heads = qkv.unflatten(1, (-1, self.base.head_dim))
        return heads[:, -2 * count : -count], heads[:, -count:]


def load_decoder(
    folder: Path,
    base: NativeConfig,
    dtype: torch.dtype,
    device: torch.device,
    quantize: str = "auto",
) -> Decoder:
    """The model of a checkpoint folder; StartupError names what is missing or wrong. `quantize` is
    the setting (see EngineConfig)."""
    return Decoder(base, load_weights(folder, base, dtype, device, quantize), device)


def _layers(base: NativeConfig, weights: Weights) -> tuple[_Layer, ...]:
    linears = {site.name: Linear(site, weights.sites[site.name]) for site in base.layer_sites}
    return tuple(
        _Layer(
            index,
            base.layer_windows[index],
            norms,
            qkv=linears[f"layers.{index}.qkv"],
            o=linears[f"layers.{index}.o"],
            gate_up=linears[f"layers.{index}.gate_up"],
            down=linears[f"layers.{index}.down"],
        )
        for index, norms in enumerate(weights.norms)
    )


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """float32 [head_dim / 2], radians per position; on the CPU."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / rope.theta**exponents
    if rope.rope_type == "linear":
        return plain / rope.factor
    if rope.rope_type == "llama3":
        return _llama3(rope, plain)
    if rope.rope_type == "yarn":
        return _yarn(rope, plain, head_dim)
    return plain


def rope_table(
    rope: RopeConfig, head_dim: int, num_positions: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """[num_positions, 2, head_dim]: row p holds (cos, cos) and (-sin, sin) of its angles.

    The sign of the first half of the sines makes the rotation one multiplication and one fused
    multiply-add over whole heads. Computed in float32, then rounded to `dtype`.
    """
    frequencies = inverse_frequencies(rope, head_dim).to(device)
    positions = torch.arange(num_positions, dtype=torch.float32, device=device)
    angles = positions[:, None] * frequencies
    cos, sin = angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor
    return torch.stack((cos, cos, -sin, sin), dim=1).to(dtype).view(num_positions, 2, head_dim)


def _llama3(rope: RopeConfig, plain: torch.Tensor) -> torch.Tensor:
    """Short wavelengths are kept, long ones stretched by `factor`, those between blended."""
    turns = rope.original_max_positions * plain / (2 * math.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * plain / rope.factor + blend * plain


def _yarn(rope: RopeConfig, plain: torch.Tensor, head_dim: int) -> torch.Tensor:
    """As llama3, with a ramp that is linear in the dimension instead of in the frequency."""

    def dimension_of(turns: float) -> float:
        """The dimension whose pair turns that often over the original length."""
        wavelength = rope.original_max_positions / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    # a ramp of no length is a step
    length = high - low or 0.001
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / length
    stretched = ramp.clamp(0, 1)
    return stretched * plain / rope.factor + (1 - stretched) * plain
