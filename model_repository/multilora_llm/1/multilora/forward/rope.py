"""Rotary position embedding: the table of cosines and sines; rope_kv_write applies it.

    y[d]       = x[d]·cos(p·f) - x[d + D/2]·sin(p·f)
    y[d + D/2] = x[d + D/2]·cos(p·f) + x[d]·sin(p·f)

for d < D/2, position p and frequency f = f[d], the half-split layout of Hugging Face checkpoints.
Sources: RoFormer (arXiv 2104.09864), YaRN (arXiv 2309.00071), the Llama 3.1 model card.
"""

import math

import torch

from multilora.base_model.config import RopeConfig


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
