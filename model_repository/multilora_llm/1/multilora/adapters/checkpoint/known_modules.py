"""KnownModules: which place of the base model a tensor of an adapter is for, by the names that
trainers give to modules, and by PEFT's to parameters.

PEFT names no parameter in its files: of those that target_parameters has in one module, the last
one, in the order of the class, has its factors beside the module, the one before it in a
`base_layer` of that, and so on.
"""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from multilora.base_model.sites import HEAD, LoRASite, modules, short_names
from multilora.errors import RequestError, invalid

_ALIASES = {"unembed_tokens": HEAD}  # as Tinker writes it
# Trainers put any of these before "layers.".
_PREFIX = re.compile(r"(?:(?:base_model|model|language_model|module)\.)*")
_LAYER = re.compile(r"\blayers\.(\d{1,9})\.")
RENAMED = (".block_sparse_moe.", ".mlp.")  # what Mixtral's and others' was, and is
_WRAPPED = ".base_layer"


class KnownPlace(NamedTuple):
    """`module` is its path in the base, `pattern_name` what PEFT matches patterns with."""

    module: str
    pattern_name: str


class KnownModules:
    """`targets` are the target_parameters of the adapter, `optional` the short names of all places
    that this base model could have, see BaseConfig.optional."""

    def __init__(
        self,
        sites: Sequence[LoRASite],
        targets: Sequence[str] = (),
        optional: Collection[str] = (),
    ) -> None:
        self.sites = modules(sites)
        self.names = short_names(sites)
        self.num_layers = 1 + max(site.layer or 0 for site in sites)
        self.optional = optional
        self._targets = targets
        self._linears: dict[str, str] = {}  # by plain path
        self._parameters: dict[str, list[str]] = {}  # by that of the module, in order
        for path, (_, part) in self.sites.items():
            if part.is_parameter:
                owner = plain_path(path.rpartition(".")[0])
                self._parameters.setdefault(owner, []).append(path)
            else:
                self._linears[plain_path(path)] = path

    def find(self, module: str, tensor: str) -> KnownPlace | None:
        """RequestError when the base has too few layers for `tensor`."""
        plain = plain_path(module)
        plain = _ALIASES.get(plain, plain)
        own = peft_name(module)
        if path := self._linears.get(plain):
            weight = f"{own}.weight"
            return KnownPlace(path, weight if self._is_target(weight) else own)
        owner, depth = _unwrapped(plain)
        if path := self._matrix(plain):
            return KnownPlace(path, own)
        targeted = [path for path in self._parameters.get(owner, ()) if self._is_target(path)]
        if depth < len(targeted):
            path = targeted[-1 - depth]
            name = path.rpartition(".")[2]
            return KnownPlace(path, f"{_unwrapped(own)[0]}.{name}")
        self._check_layer(owner, tensor)
        return None

    def parameter(self, owner: str, name: str) -> str | None:
        """The path of a parameter by the plain path of its module."""
        paths = self._parameters.get(owner, ())
        return next((path for path in paths if path.rpartition(".")[2] == name), None)

    def _matrix(self, module: str) -> str | None:
        """The weight of a module that was a linear one when the adapter was trained: a router,
        which target_parameters does not name then."""
        for owner in (module, module.replace(*RENAMED)):
            path = self.parameter(owner, "weight")
            if path and not self._is_target(path):
                return path
        return None

    def targets_in(self, module: str) -> list[str]:
        """The short names of target_parameters in that module, whatever the base model has."""
        owner, _ = _unwrapped(module)
        found: list[str] = []
        for target in self._targets:
            path, _, name = target.rpartition(".")
            if not path or _ends(owner, path):
                found.append(f"{owner.rpartition('.')[2]}.{name}")
        return sorted(found)  # PEFT saves them in any order

    def _is_target(self, path: str) -> bool:
        """PEFT's rule."""
        return any(_ends(path, target) for target in self._targets)

    def _check_layer(self, owner: str, tensor: str) -> None:
        layer = _LAYER.search(owner)
        if not layer or int(layer[1]) < self.num_layers:
            return
        for index in range(self.num_layers):
            other = _LAYER.sub(f"layers.{index}.", owner)
            if other in self._linears or other in self._parameters:
                raise invalid(
                    f"tensor {tensor!r} is for layer {int(layer[1])}, but the base model has "
                    f"layers 0 to {self.num_layers - 1}; use the base model the adapter was "
                    "trained on"
                )


def peft_name(module: str) -> str:
    """What PEFT matches patterns with: the path in its files without what it puts before it."""
    return module.removeprefix("base_model.model.")


def plain_path(module: str) -> str:
    """A module's path without what may stand before it, its layer as a plain number."""
    path = _PREFIX.sub("", module, count=1)
    return _LAYER.sub(lambda match: f"layers.{int(match[1])}.", path)


def no_room(what: str, *names: str) -> RequestError:
    """About places that the base model has, and the pages have not."""
    return invalid(
        f"{what} LoRA on {' and '.join(names)}, for which the pages of adapter memory have no "
        f"room; start the server with {','.join(names)} in --lora-target-modules"
    )


def _unwrapped(module: str) -> tuple[str, int]:
    """Without `base_layer`, and how many there were."""
    path = module
    while path.endswith(_WRAPPED):
        path = path.removesuffix(_WRAPPED)
    return path, (len(module) - len(path)) // len(_WRAPPED)


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")
