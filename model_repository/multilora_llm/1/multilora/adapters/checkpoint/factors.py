"""Factors: the A and B of a module, of the rank, shape and dtype that the adapter's config and the
base model call for.

PEFT stacks the factors of experts: A has the ranks of an expert together, B the experts of a rank.
Up to 0.18 it took the rows of each matrix for inputs, whichever way the class has them, so that A
and B of most classes have each other's place.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from multilora.adapters.checkpoint.peft_config import AdapterConfig, ModuleConfig
from multilora.adapters.files import CONFIG_FILE
from multilora.base_model.sites import LoRASite, Slice
from multilora.errors import RequestError, invalid

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Factors(NamedTuple):
    """ΔW = scaling · b · a, as in the file: a [rank, in_features], b [out_features, rank]. Of E
    experts a [E, rank, in_features], b [E, out_features, rank], which the file has transposed."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[-2]


class Half(NamedTuple):
    """lora_A or lora_B as it stands in the file."""

    name: str
    module: str  # what rank_pattern and alpha_pattern match
    tensor: torch.Tensor


def paired(
    place: tuple[LoRASite, Slice],
    halves: Mapping[tuple[str, str], Half],
    configs: Mapping[str, ModuleConfig],
    max_rank: int,
    config: AdapterConfig,
) -> Factors:
    """What `halves` have of a place; RequestError for what is missing or does not fit."""
    site, part = place
    a, b = halves.get((part.module, "A")), halves.get((part.module, "B"))
    if a is None or b is None:
        present, missing = (a, "lora_B") if a else (b, "lora_A")
        assert present is not None
        raise invalid(
            f"tensor {present.name!r} has no {missing} beside it; save the trained adapter again"
        )
    sizes = site.in_features, part.out_features
    if swapped := _is_swapped(a, site, part, config, halves):
        sizes = part.out_features, site.in_features
    _check_shapes(a, b, sizes, site.experts)
    follows = (
        config.ties and site.twin and not site.takes_ids
    )  # PEFT gives a head the embedding's rank
    rank = a.tensor.shape[0] // site.experts
    _check_rank(a, rank, rank if follows else configs[a.module].rank, max_rank)
    for half in (a, b):
        _check_dtype(half)
    if site.experts == 1:
        return Factors(a.tensor, b.tensor, configs[a.module].scaling)
    by_expert = a.tensor.view(site.experts, rank, -1)
    of_experts = b.tensor.view(-1, rank, site.experts).permute(2, 0, 1)
    if swapped:
        by_expert, of_experts = of_experts.mT, by_expert.mT
    return Factors(by_expert, of_experts, configs[a.module].scaling)


def _is_swapped(
    a: Half,
    site: LoRASite,
    part: Slice,
    config: AdapterConfig,
    halves: Mapping[tuple[str, str], Half],
) -> bool:
    """Whether A and B have each other's place. Shapes tell, unless the matrices are square."""
    if site.experts == 1:
        return False
    if site.in_features != part.out_features:
        return a.tensor.ndim == 2 and a.tensor.shape[1] == part.out_features
    if site.is_transposed:
        # PEFT asks the class since 0.19, which says so only since transformers 5: what stands
        # beside it tells.
        owner = part.module.rpartition(".")[0]
        widths = {
            half.tensor.shape[-1]
            for (module, kind), half in halves.items()
            if kind == "A" and module.rpartition(".")[0] == owner
        }
        return widths != {site.in_features}
    if config.swaps_experts is None:
        raise invalid(
            f"tensor {a.name!r} is for square matrices, and {CONFIG_FILE} has no peft_version, "
            "which says which way round they are; add that of the PEFT it was trained with"
        )
    return config.swaps_experts


def _check_shapes(a: Half, b: Half, sizes: tuple[int, int], experts: int) -> None:
    rows = a.tensor.shape[0] if a.tensor.ndim == 2 else -1
    fits = rows > 0 and rows % experts == 0
    rank: Any = rows if fits else "rank" if experts == 1 else f"{experts} · rank"
    for half, shape in ((a, [rank, sizes[0]]), (b, [sizes[1], rank])):
        if half.tensor.ndim == 1:
            raise not_gathered(half.name, half.tensor)
        if list(half.tensor.shape) != shape:
            raise invalid(
                f"tensor {half.name!r} has shape {list(half.tensor.shape)}, but the base model "
                f"needs {shape}; use the base model the adapter was trained on"
            )


def _check_rank(a: Half, rank: int, expected: int, max_rank: int) -> None:
    if rank != expected:
        raise invalid(
            f"tensor {a.name!r} has rank {rank}, but {CONFIG_FILE} says {expected} (r or "
            "rank_pattern), so its scaling is unknown; save both files together"
        )
    if rank > max_rank:
        raise invalid(
            f"tensor {a.name!r} has rank {rank}, over the limit of {max_rank}; "
            "raise max_lora_rank (--max-lora-rank)"
        )


def _check_dtype(half: Half) -> None:
    if half.tensor.dtype not in FLOATS:
        raise invalid(
            f"tensor {half.name!r} has dtype {half.tensor.dtype}; save the adapter in float32, "
            "float16 or bfloat16"
        )


def twice(one: Half, other: Half) -> RequestError:
    return invalid(
        f"tensors {one.name!r} and {other.name!r} are for the same module; "
        "save each adapter in a folder of its own"
    )


def not_gathered(name: str, tensor: torch.Tensor) -> RequestError:
    return invalid(
        f"tensor {name!r} has shape {list(tensor.shape)}: it is what one process of DeepSpeed "
        "ZeRO-3 or FSDP held; gather the weights before saving "
        "(stage3_gather_16bit_weights_on_model_save: true), or make the whole ones of the training "
        "checkpoint with zero_to_fp32.py"
    )
