"""adapter_config.json of a PEFT LoRA adapter, reduced to what the arithmetic needs.

Laws: the rank and the scaling of a module are exactly those PEFT would use; every feature that
changes the arithmetic and is not computed here is refused by name. Training-only fields (dropout,
target_modules, initialisations that leave the base weights alone…) are ignored.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from multilora.adapters.checkpoint.patterns import first_matches
from multilora.adapters.files import CONFIG_FILE
from multilora.errors import invalid
from multilora.json_fields import json_object

_RETRAIN = "retrain without it, or merge the adapter into the base model and serve that"
_REFUSED = {  # field → what it is; refused when set
    "use_dora": "DoRA (weight magnitudes)",
    "use_qalora": "QALoRA (pooled inputs)",
    "use_bdlora": "BD-LoRA (block-diagonal factors)",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing between adapters",
    "kasa_config": "KaSA (it changes the base weights)",
    "monteclora_config": "MonteCLoRA sampling",
    "layer_replication": "a base model with repeated layers",
    "megatron_config": "Megatron parallel layers",
    "lora_bias": "a bias in lora_B",
    "trainable_token_indices": "trained token embeddings",
    "fan_in_fan_out": "transposed base weights (Conv1D)",
}
# Initialisations that do not touch the base weights: their trained A and B mean what they say.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "lora_ga")
_IGNORED = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout",
    "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules",
    "target_parameters", "task_type", "use_rslora", "velora_config",
})  # fmt: skip


class ModuleConfig(NamedTuple):
    """`scaling` is alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (arXiv:2312.03732)."""

    rank: int
    scaling: float


@dataclass(frozen=True)
class AdapterConfig:
    """Ranks and scalings by patterns. Filled by `parse_config`.

    `modules_to_save` may have been trained: the tensors tell. `ties`: what acts on a table acts on
    the one that is tied to it, too.
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    modules_to_save: tuple[str, ...]
    ties: bool = False
    target_parameters: tuple[str, ...] = ()  # paths of parameters, or the ends of such
    swaps_experts: bool | None = None  # PEFT before 0.19 does, see factors; None: it is not said

    def of_modules(self, modules: Sequence[str]) -> dict[str, ModuleConfig]:
        """What holds for each module, named as in the base model; RequestError(INVALID_ARG) when
        the patterns cannot be matched."""
        names = ("rank_pattern", "alpha_pattern")
        keys = {names[0]: list(self.rank_pattern), names[1]: list(self.alpha_pattern)}
        found = first_matches(keys, modules)
        ranks = [self.r if key is None else self.rank_pattern[key] for key in found[names[0]]]
        alphas = [
            self.lora_alpha if key is None else self.alpha_pattern[key] for key in found[names[1]]
        ]
        return {
            module: ModuleConfig(rank, alpha / (math.sqrt(rank) if self.use_rslora else rank))
            for module, rank, alpha in zip(modules, ranks, alphas, strict=True)
        }


def parse_config(content: bytes) -> AdapterConfig:
    """RequestError(INVALID_ARG) when malformed or asking for what is not computed here."""
    fields = json_object(content, CONFIG_FILE, "save it again with PEFT")
    _check_features(fields)
    return AdapterConfig(
        r=_rank(fields.get("r", 8), "r"),
        lora_alpha=_alpha(fields.get("lora_alpha", 8), "lora_alpha"),
        use_rslora=bool(fields.get("use_rslora")),
        rank_pattern={k: _rank(v, f"rank_pattern[{k!r}]") for k, v in _pattern(fields, "rank")},
        alpha_pattern={k: _alpha(v, f"alpha_pattern[{k!r}]") for k, v in _pattern(fields, "alpha")},
        modules_to_save=_names(fields, "modules_to_save"),
        ties=bool(fields.get("ensure_weight_tying")),
        target_parameters=_names(fields, "target_parameters"),
        swaps_experts=_swaps_experts(fields),
    )


def _check_features(fields: dict[str, Any]) -> None:
    peft_type = fields.get("peft_type")
    if peft_type != "LORA":
        raise invalid(
            f"{CONFIG_FILE}: peft_type must be LORA, got {peft_type!r}; "
            "convert the adapter with peft.save_as_lora or train a LoRA adapter"
        )
    for name, meaning in _REFUSED.items():
        if fields.get(name):
            raise invalid(f"{CONFIG_FILE}: {name} is set; {meaning} is not supported: {_RETRAIN}")
    if fields.get("bias", "none") != "none":
        raise invalid(
            f"{CONFIG_FILE}: bias must be 'none', got {fields['bias']!r}; "
            f"trained biases are not supported: {_RETRAIN}"
        )
    _check_init(fields.get("init_lora_weights"))
    for name in fields.keys() - _REFUSED.keys() - _IGNORED:
        value = fields[name]
        if value is True or (value and isinstance(value, dict | list)):
            raise invalid(
                f"{CONFIG_FILE}: field {name!r} is not known here and may change the arithmetic; "
                "remove it if it does not"
            )


def _check_init(value: object) -> None:
    if value in _PLAIN_INITS:
        return
    name = str(value).lower()
    if name == "loftq":
        raise invalid(
            f"{CONFIG_FILE}: init_lora_weights={value!r} has quantised the base weights, so this "
            "adapter fits only the base model as LoftQ has made it; save that one (unload() after "
            "the initialisation), name it in --model-id, and set init_lora_weights to true"
        )
    if name.startswith(_BASE_CHANGING_INITS):
        raise invalid(
            f"{CONFIG_FILE}: init_lora_weights={value!r} changes the base weights, so this adapter "
            "does not fit the original base model; convert it: save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...) writes a plain LoRA adapter"
        )
    raise invalid(
        f"{CONFIG_FILE}: init_lora_weights={value!r} is not known here; set it to true if this "
        "initialisation leaves the base weights unchanged"
    )


def _pattern(fields: dict[str, Any], kind: str) -> list[tuple[str, Any]]:
    name = f"{kind}_pattern"
    pattern = fields.get(name) or {}
    if not isinstance(pattern, dict):
        raise invalid(f"{CONFIG_FILE}: {name} must be an object of module names; save it again")
    return list(pattern.items())


def _names(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name) or []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
        raise invalid(f"{CONFIG_FILE}: {name} must be a list of module names; save it again")
    return tuple(names)


def _swaps_experts(fields: dict[str, Any]) -> bool | None:
    version = re.match(r"(\d{1,9})\.(\d{1,9})", str(fields.get("peft_version", "")))
    return (int(version[1]), int(version[2])) < (0, 19) if version else None


def _rank(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise invalid(f"{CONFIG_FILE}: {name} must be a positive integer, got {value!r}; fix it")
    return value


def _alpha(value: object, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    raise invalid(f"{CONFIG_FILE}: {name} must be a finite number, got {value!r}; fix it")
