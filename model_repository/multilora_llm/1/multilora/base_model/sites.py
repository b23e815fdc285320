"""LoRASite: a place of the base model where adapters can act.

Pages of adapter memory, checks of checkpoints, kernel launches and memory plans read the table of a
base model's sites (BaseConfig.sites) and nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"  # the modules with a row for each token
TABLES = ("embed_tokens", "lm_head")  # their short names


class Rows(Enum):
    """Which rows of a pass reach a site."""

    ALL = "all"
    SAMPLED = "sampled"  # those whose logits are computed


@dataclass(frozen=True)
class Slice:
    """One linear module of a site. `module` is its path in the base model's checkpoint."""

    module: str
    out_features: int

    @property
    def short_name(self) -> str:
        """As PEFT's target_modules name it: "q_proj"."""
        return self.module.rpartition(".")[2]


@dataclass(frozen=True)
class LoRASite:
    """Linear modules that share an input, fused into one matrix and one launch, slices in order.

    `takes_ids`: an embedding, whose input is token ids: each picks a column of A, as a one-hot row
    of `in_features` numbers would. `twin` is another module with the same weight, "" for none.
    """

    name: str  # unique in the base model: "layers.3.qkv"
    layer: int | None  # None: of the whole model
    in_features: int
    slices: tuple[Slice, ...]
    has_bias: bool = False
    rows: Rows = Rows.ALL
    takes_ids: bool = False
    twin: str = ""

    @cached_property
    def slice_sizes(self) -> tuple[int, ...]:
        """out_features of each slice."""
        return tuple(part.out_features for part in self.slices)

    @cached_property
    def out_features(self) -> int:
        return sum(self.slice_sizes)

    @property
    def numbers_per_rank(self) -> int:
        """Of one rank of an adapter here: a row of A for each slice, and a row of B."""
        return len(self.slices) * self.in_features + self.out_features


def modules(sites: Iterable[LoRASite]) -> dict[str, tuple[LoRASite, Slice]]:
    """Module path → where it stands in the table, in order."""
    return {part.module: (site, part) for site in sites for part in site.slices}


def short_names(sites: Iterable[LoRASite]) -> list[str]:
    """The names of all modules without their paths, each once, in order."""
    return list(dict.fromkeys(part.short_name for site in sites for part in site.slices))
