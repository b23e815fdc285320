"""Adapters that name the modules of each expert, as was trained while each expert was a module of
its own, in the form of the parameters that hold all experts of a layer today.

The gate and the up projection of an expert are rows of one matrix there. So their factors stand
beside each other, A over A and the Bs on a diagonal, and the ranks add up.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from multilora.adapters.checkpoint.factors import Factors, Half, paired, twice
from multilora.adapters.checkpoint.known_modules import (
    RENAMED,
    KnownModules,
    no_room,
    peft_name,
    plain_path,
)
from multilora.adapters.checkpoint.peft_config import AdapterConfig, ModuleConfig
from multilora.base_model.sites import LoRASite, Slice
from multilora.errors import RequestError, invalid

_EXPERT = re.compile(r"(?P<owner>.+\.experts)\.(?P<number>\d{1,6})\.(?P<module>\w+)")
_GATE_UP, _DOWN = "gate_up_proj", "down_proj"
_PLACES = {  # a module of an expert → the parameter, and which of its parts that is
    "gate_proj": (_GATE_UP, 0), "up_proj": (_GATE_UP, 1), "down_proj": (_DOWN, 0),
    "w1": (_GATE_UP, 0), "w3": (_GATE_UP, 1), "w2": (_DOWN, 0),
}  # fmt: skip
_PARTS = {_GATE_UP: 2, _DOWN: 1}


class _Place(NamedTuple):
    parameter: str  # its path
    expert: int
    part: int


class SingleExperts:
    """Filled by `take`, tensor by tensor."""

    def __init__(self, known: KnownModules) -> None:
        self._known = known
        self._halves: dict[tuple[str, str], Half] = {}  # by module, and A or B
        self._modules: dict[_Place, str] = {}

    def take(self, name: str, module: str, half: str, tensor: torch.Tensor) -> bool:
        """Whether it is for an expert of this base model, and is kept. RequestError when another
        tensor is for the same, and when there are fewer experts."""
        place = self._place(name, module) if ".experts." in module else None
        if place is None:
            return False
        new = Half(name, peft_name(module), tensor)
        first = self._modules.setdefault(place, module)
        kept = self._halves.setdefault((first, half), new)
        if kept is not new:
            raise twice(kept, new)
        return True

    @property
    def names(self) -> list[str]:
        """Of the modules, as patterns match them."""
        return [half.module for half in self._halves.values()]

    def factors(
        self, configs: Mapping[str, ModuleConfig], max_rank: int, config: AdapterConfig
    ) -> dict[str, Factors]:
        """By the path of the parameter; RequestError for what is missing or does not fit."""
        found: dict[str, dict[_Place, Factors]] = {}
        for place, module in self._modules.items():
            site, part = self._known.sites[place.parameter]
            width = part.out_features // _PARTS[_name(place.parameter)]
            one = replace(site, experts=1, slices=(Slice(module, width),))
            pair = paired((one, one.slices[0]), self._halves, configs, max_rank, config)
            found.setdefault(place.parameter, {})[place] = pair
        return {
            parameter: _stacked(self._known.sites[parameter][0], pairs, max_rank)
            for parameter, pairs in found.items()
        }

    def _place(self, tensor: str, module: str) -> _Place | None:
        match = _EXPERT.fullmatch(plain_path(module))
        if match is None or match["module"] not in _PLACES:
            return None
        name, part = _PLACES[match["module"]]
        owners = (match["owner"], match["owner"].replace(*RENAMED))
        found = filter(None, (self._known.parameter(owner, name) for owner in owners))
        parameter, number = next(found, None), int(match["number"])
        if parameter is None or self._known.sites[parameter][0].is_transposed:
            return None
        if number >= (count := self._known.sites[parameter][0].experts):
            raise invalid(
                f"tensor {tensor!r} is for expert {number}, but the base model has experts 0 to "
                f"{count - 1}; use the base model the adapter was trained on"
            )
        return _Place(parameter, number, part)


def no_room_for(tensors: Mapping[str, str], known: KnownModules) -> RequestError | None:
    """About those of `tensors`, name → module, for which this base model has parameters, but the
    pages have no room; None when there are none."""
    needed = {name: parameter_for(module) for name, module in tensors.items()}
    lacking = [
        short for short in known.optional if short in needed.values() and short not in known.names
    ]
    name = next((name for name, short in needed.items() if short in lacking), None)
    return no_room(f"tensor {name!r} is", *lacking) if name else None


def parameter_for(module: str) -> str:
    """The short name of the parameter that holds what was this module's weight: of the module of an
    expert, or else of a router."""
    match = _EXPERT.fullmatch(module)
    place = _PLACES.get(match["module"]) if match else None
    return f"experts.{place[0]}" if place else f"{module.rpartition('.')[2]}.weight"


def _name(parameter: str) -> str:
    return parameter.rpartition(".")[2]


def _stacked(site: LoRASite, pairs: Mapping[_Place, Factors], max_rank: int) -> Factors:
    """Of all experts; zeros for those that an adapter leaves alone."""
    ranks = [0] * _PARTS[_name(site.slices[0].module)]
    for place, pair in pairs.items():
        ranks[place.part] = max(ranks[place.part], pair.rank)
    rank = sum(ranks)
    if rank > max_rank:
        raise invalid(
            f"the gate and up projections of an expert have ranks {ranks[0]} and {ranks[-1]}, "
            f"together over the limit of {max_rank}; raise max_lora_rank (--max-lora-rank)"
        )
    scalings = {pair.scaling for pair in pairs.values()}
    scaling = scalings.pop() if len(scalings) == 1 else 1.0
    some = next(iter(pairs.values()))
    dtypes = {half.dtype for pair in pairs.values() for half in (pair.a, pair.b)}
    dtype = dtypes.pop() if len(dtypes) == 1 and not scalings else torch.float32
    width = site.out_features // len(ranks)
    a = some.a.new_zeros((site.experts, rank, site.in_features), dtype=dtype)
    b = some.b.new_zeros((site.experts, site.out_features, rank), dtype=dtype)
    for (_, expert, part), pair in pairs.items():
        first, own = sum(ranks[:part]), pair.rank
        a[expert, first : first + own] = pair.a
        rows = slice(part * width, (part + 1) * width)
        scaled = pair.b if pair.scaling == scaling else pair.b.to(dtype) * pair.scaling
        b[expert, rows, first : first + own] = scaled
    return Factors(a, b, scaling)
