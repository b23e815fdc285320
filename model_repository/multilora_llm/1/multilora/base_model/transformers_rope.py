"""RoPE as a config of the transformers library has it.

Types that the library fits to the longest sequence of each batch are fixed here, once for all
batches.
"""

import copy
import math
from typing import Any

from transformers import PretrainedConfig

_STRETCHED = ("dynamic", "yarn")  # whose `factor` says how far


def ropes(library: PretrainedConfig) -> list[dict[str, Any]]:
    """As a config of transformers has them: of the whole model, or of each type of layer."""
    parameters: dict[str, Any] = getattr(library, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        return [parameters]
    return [rope for rope in parameters.values() if isinstance(rope, dict) and "rope_type" in rope]


def is_dynamic(rope: dict[str, Any]) -> bool:
    """Whether its frequencies follow the length of a sequence. Those with an `alpha` do not."""
    return rope["rope_type"] == "dynamic" and not rope.get("alpha")


def rope_problem(library: PretrainedConfig) -> str | None:
    """Why it cannot be computed. That numbers are numbers the library does not look at."""
    for rope in ropes(library):
        if "mrope_section" in rope:
            return "RoPE of several dimensions (M-RoPE) is not supported"
        for name in ("factor", "original_max_position_embeddings", "rope_theta"):
            value = rope.get(name)
            if value is None and (name != "factor" or rope["rope_type"] not in _STRETCHED):
                continue
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                return f"{name} of RoPE is {value!r}; set it to a number above 0"
    return None


def longest_sequence(library: PretrainedConfig, known: int) -> int:
    """What a model is meant for that was trained on `known` positions, with its scaling."""
    reached = [known]
    for rope in ropes(library):
        if is_dynamic(rope):
            reached.append(int(known * rope["factor"]))
        elif rope["rope_type"] == "yarn":
            reached.append(int(rope["original_max_position_embeddings"] * rope["factor"]))
    return max(reached)


def varying_ropes(library: PretrainedConfig) -> list[str]:
    """Types of RoPE that the library fits to the longest sequence of each batch."""
    found = (rope["rope_type"] for rope in ropes(library) if _varies(rope))
    return list(dict.fromkeys(found))


def _varies(rope: dict[str, Any]) -> bool:
    return is_dynamic(rope) or rope["rope_type"] == "longrope"


def with_fixed_rope(library: PretrainedConfig, total_tokens: int) -> PretrainedConfig:
    """A copy whose frequencies are those for sequences of `total_tokens`, whatever a batch holds:
    an answer must not depend on what shares its pass."""
    fixed = copy.deepcopy(library)
    for rope in ropes(fixed):
        if rope["rope_type"] == "longrope":
            is_long = total_tokens > rope["original_max_position_embeddings"]
            kept = rope["long_factor" if is_long else "short_factor"]
            rope["long_factor"] = rope["short_factor"] = kept
        elif is_dynamic(rope):
            rope["rope_theta"] *= _ntk_stretch(fixed, rope, total_tokens)
            rope["rope_type"] = "default"
            del rope["factor"]
    return fixed


def _ntk_stretch(library: PretrainedConfig, rope: dict[str, Any], total_tokens: int) -> float:
    """What NTK scaling makes of theta for a sequence of that length."""
    known, factor = library.max_position_embeddings, rope["factor"]
    head_dim = getattr(library, "head_dim", None)
    head_dim = head_dim or library.hidden_size // library.num_attention_heads
    rotated = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    length = max(total_tokens, known)
    return (factor * length / known - (factor - 1)) ** (rotated / (rotated - 2))
