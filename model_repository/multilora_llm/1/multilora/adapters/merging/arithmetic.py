"""Several adapters → one, matrix by matrix: PEFT's `add_weighted_adapter`, and its PEFT files.

Semantics, for each module and the parts i that update it, with s_i = weight_i · scaling_i:
A = merge(A_i · sign(s_i)·√|s_i|), B = merge(B_i · √|s_i|), and the scaling of the result is 1.
merge is a sum (linear), a sum of what random pruning leaves (dare_linear, arXiv:2311.03099), or a
mean of the values that agree with the majority's sign after pruning (ties, arXiv:2306.01708).
Parts of lower rank are filled with zero rows, which change no product.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from safetensors.torch import save

from multilora.adapters.checkpoint.factors import Factors
from multilora.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from multilora.adapters.merging.recipe import MergeRecipe
from multilora.base_model.sites import LoRASite, modules
from multilora.errors import invalid
from multilora_text.checkpoint_text import GENERATION_CONFIG


def check_mergeable(factors: Mapping[str, Factors], sites: Iterable[LoRASite]) -> None:
    """RequestError(INVALID_ARG) for factors of parameters, which PEFT merges no more than we do."""
    places = modules(sites)
    for module in factors:
        if places[module][0].is_parameter:
            raise invalid(
                f"it acts on the parameter {places[module][1].short_name}, and adapters of "
                "parameters cannot be merged; name others, or use this one by itself"
            )


def merge_factors(
    parts: Sequence[Mapping[str, Factors]], recipe: MergeRecipe, seed: int
) -> dict[str, Factors]:
    """`parts`, one for each weight of the recipe → float32 factors of one rank, with scaling 1.

    `seed` makes the random pruning of dare_* the same each time.
    """
    rank = max(pair.rank for part in parts for pair in part.values())
    noise = torch.Generator().manual_seed(seed)
    updated = sorted({module for part in parts for module in part}, key=_order)
    return {module: _merged(module, parts, recipe, rank, noise) for module in updated}


def as_checkpoint(
    merged: Mapping[str, Factors],
    sites: Iterable[LoRASite],
    end_token_ids: Sequence[int] = (),
) -> dict[str, bytes]:
    """The files of a PEFT folder, by name; `end_token_ids` are those of all parts."""
    rank = max(pair.rank for pair in merged.values())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "bias": "none",
        "target_modules": sorted({_short(module) for module in merged}),
    }
    tensors: dict[str, torch.Tensor] = {}
    places = modules(sites)
    for module, pair in merged.items():
        name = "lora_embedding_{}" if places[module][0].takes_ids else "lora_{}.weight"
        for half, factor in (("A", pair.a), ("B", pair.b)):
            tensors[f"base_model.model.{module}.{name.format(half)}"] = factor.contiguous()
    files = {CONFIG_FILE: json.dumps(config, indent=1).encode(), WEIGHTS_FILE: save(tensors)}
    if end_token_ids:
        files[GENERATION_CONFIG] = json.dumps({"eos_token_id": list(end_token_ids)}).encode()
    return files


def _order(module: str) -> tuple[int, str]:
    """By layer and name, tables first: the noise of dare_* is drawn in this order."""
    return int(module.partition("layers.")[2].partition(".")[0] or -1), _short(module)


def _short(module: str) -> str:
    return module.rpartition(".")[2]


def _merged(
    module: str,
    parts: Sequence[Mapping[str, Factors]],
    recipe: MergeRecipe,
    rank: int,
    noise: torch.Generator,
) -> Factors:
    pairs = [
        (part[module], weight)
        for part, weight in zip(parts, recipe.weights, strict=True)
        if module in part
    ]
    scales = [weight * pair.scaling for pair, weight in pairs]
    roots = [math.sqrt(abs(scale)) for scale in scales]
    signed = [math.copysign(root, scale) for root, scale in zip(roots, scales, strict=True)]
    a = _combined([pair.a for pair, _ in pairs], signed, recipe, (rank, 0), noise)
    b = _combined([pair.b for pair, _ in pairs], roots, recipe, (0, rank), noise)
    return Factors(a, b, 1.0)


def _combined(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    recipe: MergeRecipe,
    least: tuple[int, int],
    noise: torch.Generator,
) -> torch.Tensor:
    """The result has at least `least` rows and columns. Zeros fill it up: they have no sign, so the
    majority's sign and the mean of ties are not changed."""
    pruned = [_pruned(tensor.float(), recipe, noise) for tensor in tensors]
    stacked = torch.stack([_padded(tensor, *least) for tensor in pruned])
    weighted = stacked * torch.tensor(weights).view(-1, 1, 1)
    if not recipe.strategy.endswith("ties"):
        return weighted.sum(dim=0)
    sign = stacked.sign()
    votes = (stacked if recipe.sign_method == "total" else sign).sum(dim=0)
    agrees = sign == torch.where(votes >= 0, 1, -1)
    return (weighted * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1.0)


def _pruned(tensor: torch.Tensor, recipe: MergeRecipe, noise: torch.Generator) -> torch.Tensor:
    """Keep the part `density` of the values: the largest ones (ties), or random ones that are
    scaled up by 1 / density (dare_*)."""
    density = recipe.density
    if density >= 1:
        return tensor
    if recipe.strategy.startswith("dare"):
        kept = torch.bernoulli(torch.full_like(tensor, density), generator=noise)
        return tensor * kept / density
    flat = tensor.reshape(-1)
    kept = torch.zeros_like(flat)
    kept[flat.abs().topk(int(density * flat.numel())).indices] = 1
    return (flat * kept).view_as(tensor)


def _padded(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    right = max(0, columns - tensor.shape[1])
    below = max(0, rows - tensor.shape[0])
    return torch.nn.functional.pad(tensor, (0, right, 0, below))
