"""BaseConfig: what the engine reads of a base model. LoRASite: a place of it for adapters.

Pages of adapter memory, checks of checkpoints, kernel launches and memory plans read the table of a
base model's sites (BaseConfig.sites) and nothing else.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Self

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"  # the modules with a row for each token
TABLES = ("embed_tokens", "lm_head")  # their short names


class Rows(Enum):
    """Which rows of a pass reach a site."""

    ALL = "all"
    SAMPLED = "sampled"  # those whose logits are computed


@dataclass(frozen=True)
class Slice:
    """One linear module of a site, or a parameter that is used like the weight of one. `module` is
    its path in the base model's checkpoint."""

    module: str
    out_features: int
    is_parameter: bool = False

    @property
    def short_name(self) -> str:
        """As PEFT's target_modules name it, "q_proj", or its target_parameters,
        "experts.down_proj"."""
        return ".".join(self.module.split(".")[-2 if self.is_parameter else -1 :])


@dataclass(frozen=True)
class LoRASite:
    """Linear modules that share an input, fused into one matrix and one launch, slices in order.

    `takes_ids`: an embedding, whose input is token ids: each picks a column of A, as a one-hot row
    of `in_features` numbers would. `twin` is another module with the same weight, "" for none.
    `experts` > 1: a stack of as many matrices, each with factors of its own; `is_transposed`: they
    are [in_features, out_features].
    """

    name: str  # unique in the base model: "layers.3.qkv"
    layer: int | None  # None: of the whole model
    in_features: int
    slices: tuple[Slice, ...]
    has_bias: bool = False
    rows: Rows = Rows.ALL
    takes_ids: bool = False
    twin: str = ""
    experts: int = 1
    is_transposed: bool = False

    @cached_property
    def slice_sizes(self) -> tuple[int, ...]:
        """out_features of each slice."""
        return tuple(part.out_features for part in self.slices)

    @cached_property
    def out_features(self) -> int:
        return sum(self.slice_sizes)

    @property
    def numbers_per_rank(self) -> int:
        """Of one rank of an adapter here: a row of A for each slice, and a row of B, of each
        expert."""
        return self.experts * (len(self.slices) * self.in_features + self.out_features)

    @property
    def is_parameter(self) -> bool:
        return self.slices[0].is_parameter


@dataclass(frozen=True)
class BaseConfig:
    """What the engine reads of a base model, whichever class computes it. Sizes are counts of
    elements.

    `num_layers` are those of the KV cache. `max_position_embeddings` is the longest sequence the
    RoPE is meant for. `dtype` is the one the checkpoint asks for. `adapted` are those of the
    `optional` places where adapters can act, in their order; see with_places.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: str
    adapted: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def value_dim(self) -> int:
        """Of a head of V; head_dim is that of Q and K."""
        return self.head_dim

    @property
    def optional(self) -> tuple[str, ...]:
        """Short names of the places where adapters can act only if somebody uses them."""
        return TABLES

    def with_places(self, names: Collection[str]) -> Self:
        """The same model, where adapters can act on those of the `optional` places that `names`
        has, too: tables, and the parameters of experts and routers.

        They are places like any other, but only where somebody uses them: a page holds the same
        ranks of every site, so a table adds 16 · (vocab + hidden) numbers to the pages of all
        adapters (5 % of those of Llama 3 8B, 28 % of Qwen 2.5 0.5B), and experts as many as they
        have rows and columns, each of them (47 times those of all other places of Qwen3 30B-A3B).
        Nobody else pays for that. A pool of its own would spare these pages to adapters that leave
        them alone, at the price of a second allocator that the scheduler has to ask, and of second
        tables in every pass.
        """
        return replace(self, adapted=tuple(name for name in self.optional if name in names))

    @cached_property
    def sites(self) -> tuple[LoRASite, ...]:
        """Every place where an adapter can act, in the order of the forward pass; of a layer its
        linear modules come first."""
        inner = sorted((*self.layer_sites, *self.parameter_sites), key=lambda site: site.layer or 0)
        return (*self._table(EMBEDDING), *inner, *self._table(HEAD))

    @cached_property
    def adapts_sampled(self) -> bool:
        """Whether a site is reached by the rows that sample alone."""
        return any(site.rows is Rows.SAMPLED for site in self.sites)

    @cached_property
    def layer_sites(self) -> tuple[LoRASite, ...]:
        """The linear modules of the layers."""
        return tuple(self._sites_of_layers())

    @property
    def parameter_sites(self) -> tuple[LoRASite, ...]:
        """The bare parameters of the layers among them."""
        return ()

    def _sites_of_layers(self) -> Iterator[LoRASite]:
        raise NotImplementedError

    def site(self, module: str) -> LoRASite | None:
        """Where the module of that path stands, None if no adapter can act on it."""
        return next((s for s in self.sites if any(module == p.module for p in s.slices)), None)

    def _table(self, module: str) -> Iterator[LoRASite]:
        vocab, hidden, tied = self.vocab_size, self.hidden_size, self.tie_word_embeddings
        if (name := module.rpartition(".")[2]) not in self.adapted:
            return
        if module == EMBEDDING:
            slices, twin = (Slice(module, hidden),), HEAD if tied else ""
            yield LoRASite(name, None, vocab, slices, takes_ids=True, twin=twin)
        else:
            slices, twin = (Slice(module, vocab),), EMBEDDING if tied else ""
            yield LoRASite(name, None, hidden, slices, rows=Rows.SAMPLED, twin=twin)


def modules(sites: Iterable[LoRASite]) -> dict[str, tuple[LoRASite, Slice]]:
    """Module path → where it stands in the table, in order."""
    return {part.module: (site, part) for site in sites for part in site.slices}


def short_names(sites: Iterable[LoRASite]) -> list[str]:
    """The names of all modules and parameters without their paths, each once, in order."""
    return list(dict.fromkeys(part.short_name for site in sites for part in site.slices))
