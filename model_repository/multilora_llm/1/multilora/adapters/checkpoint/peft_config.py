"""adapter_config.json of a PEFT LoRA adapter, reduced to what the arithmetic needs.

Laws: the rank and the scaling of a module are exactly those PEFT would use; every feature that
changes the arithmetic and is not computed here is refused by name. Training-only fields (dropout,
target_modules, initialisations that leave the base weights alone…) are ignored.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multilora.adapters.files import CONFIG_FILE
from multilora.errors import invalid
from multilora.json_fields import json_object

# Keys come from the adapter's author: keep matching from backtracking for ever.
_MAX_REPEATS = 3
_REPEATED_GROUP = re.compile(r"\)[*+{]")
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
    "target_parameters": "LoRA on bare parameters (mixture of experts)",
    "megatron_config": "Megatron parallel layers",
    "lora_bias": "a bias in lora_B",
    "modules_to_save": "fully trained copies of base modules",
    "trainable_token_indices": "trained token embeddings",
    "fan_in_fan_out": "transposed base weights (Conv1D)",
}
# Initialisations that do not touch the base weights: their trained A and B mean what they say.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")
_IGNORED = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout",
    "lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
    "velora_config",
})  # fmt: skip


@dataclass(frozen=True)
class AdapterConfig:
    """Ranks and scalings. Filled by `parse_config`; a module is named as in the base model."""

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def rank(self, module: str) -> int:
        return _match(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (arXiv:2312.03732)."""
        rank = self.rank(module)
        alpha = _match(self.alpha_pattern, module, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


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
    if str(value).lower().startswith(_BASE_CHANGING_INITS):
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
    for key in pattern:
        try:
            re.compile(key)
        except re.error as error:
            raise invalid(
                f"{CONFIG_FILE}: {name} key {key!r} is not a regular expression ({error}); fix it"
            ) from None
        if _REPEATED_GROUP.search(key) or sum(key.count(c) for c in "*+{") > _MAX_REPEATS:
            raise invalid(
                f"{CONFIG_FILE}: {name} key {key!r} repeats too much to match it quickly; "
                "write out the module names"
            )
    return list(pattern.items())


def _match(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first key that is the name, or its end after a dot, as a regex."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _rank(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise invalid(f"{CONFIG_FILE}: {name} must be a positive integer, got {value!r}; fix it")
    return value


def _alpha(value: object, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    raise invalid(f"{CONFIG_FILE}: {name} must be a finite number, got {value!r}; fix it")
