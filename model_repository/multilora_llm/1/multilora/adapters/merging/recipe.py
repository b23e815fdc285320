"""MergeRecipe: how adapters are merged into one, read from a JSON object of a request and checked.

The names and meanings are those of PEFT's `LoraModel.add_weighted_adapter`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from multilora.errors import invalid
from multilora.json_fields import json_object
from multilora_api.adapter_names import shown
from multilora_api.admin import SIGN_METHODS, STRATEGIES

_KEYS = ("ids", "weights", "merge_strategy", "density", "majority_sign_method")
_EXAMPLE = '{"ids": ["a", "b"], "weights": [0.5, 0.5]}'
_MAX_PARTS = 16
_MAX_WEIGHT = 1000.0
_VERSION = "1"  # of the arithmetic: a new one makes other adapters of the same recipe


@dataclass(frozen=True)
class MergeRecipe:
    """Filled by `parse_merge`. A field that the strategy does not use has its default (`density` 1,
    `sign_method` "total"), so that equal merges are equal recipes.
    """

    ids: tuple[str, ...]
    weights: tuple[float, ...]
    strategy: str = "linear"
    density: float = 1.0
    sign_method: str = "total"

    def digest(self, parts: Sequence[str]) -> str:
        """The identity (hex) of the merge of parts with these digests; their ids do not count."""
        recipe = [_VERSION, list(parts), self.weights, self.strategy, self.density]
        text = json.dumps([*recipe, self.sign_method])
        return hashlib.sha256(text.encode()).hexdigest()


def parse_merge(given: object) -> MergeRecipe:
    """Read a JSON object, or its text; raises RequestError (INVALID_ARG)."""
    fields = json_object(given, "merge", f"send for example {_EXAMPLE}")
    if unknown := [name for name in fields if name not in _KEYS]:
        raise invalid(f"merge: unknown key {shown(unknown[0])}; it takes {', '.join(_KEYS)}")
    ids = _ids(fields.get("ids"))
    weights = _weights(fields.get("weights"), len(ids))
    strategy = _choice("merge_strategy", fields.get("merge_strategy"), STRATEGIES)
    method = _choice("majority_sign_method", fields.get("majority_sign_method"), SIGN_METHODS)
    density = _density(fields.get("density"))
    if strategy == "linear" or len(ids) == 1:  # as PEFT has it
        return MergeRecipe(ids, weights)
    if density == 0:
        raise invalid(f"merge: density 0 leaves nothing of the adapters; {strategy} needs more")
    return MergeRecipe(
        ids, weights, strategy, density, method if strategy.endswith("ties") else "total"
    )


def _ids(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
        raise invalid(f"merge: ids must be a list of adapter ids; got {shown(value)}")
    if len(value) > _MAX_PARTS:
        raise invalid(f"merge: {len(value)} ids are given, but at most {_MAX_PARTS} are merged")
    if len(set(value)) < len(value):
        raise invalid(f"merge: ids names an adapter twice ({shown(value)}); raise its weight")
    return tuple(value)


def _weights(value: object, count: int) -> tuple[float, ...]:
    if value is None or value == []:
        return (1.0,) * count
    if not isinstance(value, list) or not all(
        _is_number(weight) and abs(weight) <= _MAX_WEIGHT for weight in value
    ):
        raise invalid(
            f"merge: weights must be numbers from -{_MAX_WEIGHT:g} to {_MAX_WEIGHT:g}; "
            f"got {shown(value)}"
        )
    if len(value) != count:
        raise invalid(f"merge: {len(value)} weights are given for {count} ids; send one for each")
    return tuple(map(float, value))


def _density(value: Any) -> float:
    if value is None:
        return 1.0
    if _is_number(value) and 0 <= value <= 1:
        return float(value)
    raise invalid(f"merge: density must be a number from 0 to 1; got {shown(value)}")


def _is_number(value: object) -> bool:
    """A bool is no number. Infinities and NaN are numbers, which lie in no range."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _choice(name: str, value: object, allowed: Sequence[str]) -> str:
    if value is None or value == "":
        return allowed[0]
    if not isinstance(value, str) or value not in allowed:
        raise invalid(f"merge: {name} must be one of {', '.join(allowed)}; got {shown(value)}")
    return value
