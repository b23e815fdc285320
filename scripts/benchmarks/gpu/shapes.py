"""What the GPU benchmark computes with: model shapes, mixes of adapters, ranks, and byte floors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from multilora.base_model.config import NativeConfig, RopeConfig
from multilora.base_model.sites import LoRASite

MIXES = ("distinct", "uniform", "skewed", "identical")
RANKS = {"8": (8,), "16": (16,), "64": (64,), "mixed": (8, 16, 32, 64)}
MOST_DECODE_ROWS = 256  # with more a batch is a prefill
_SKEW = (
    3  # an adapter has a third of what is left: 1.5 times as many as the next (arXiv 2310.18547)
)


def llama(
    layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocab: int, positions: int
) -> NativeConfig:
    return NativeConfig(
        architecture="LlamaForCausalLM",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=500000.0),
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        layer_windows=(None,) * layers,
        dtype="bfloat16",
    )


LLAMA_8B = llama(32, 4096, 14336, 32, 8, 128256, 8192)
TINY = llama(1, 64, 96, 4, 2, 128, 256)


def layer_sites(base: NativeConfig) -> dict[str, LoRASite]:
    """The sites of the first layer by their names within it: "qkv", … All layers are alike."""
    return {site.name.rpartition(".")[2]: site for site in base.sites if site.layer == 0}


GROUPS = tuple(layer_sites(TINY))


def requests_per_adapter(mix: str, requests: int) -> list[int]:
    """How many requests each adapter has, the most first; every adapter has one or more."""
    if mix == "distinct":
        return [1] * requests
    if mix == "identical":
        return [requests]
    if mix == "uniform":
        adapters = math.ceil(math.sqrt(requests))
        return [requests // adapters + (i < requests % adapters) for i in range(adapters)]
    if mix == "skewed":
        counts: list[int] = []
        while sum(counts) < requests:
            left = requests - sum(counts)
            counts.append(math.ceil(left / _SKEW))
        return counts
    raise ValueError(f"unknown mix {mix!r}; known: {', '.join(MIXES)}")


@dataclass(frozen=True)
class Mix:
    """T rows: `counts[i]` of them, one after another, belong to adapter i of rank `ranks[i]`."""

    counts: tuple[int, ...]
    ranks: tuple[int, ...]

    @staticmethod
    def of(name: str, requests: int, rows_per_request: int, ranks: Sequence[int]) -> "Mix":
        """`ranks` are dealt out in turn."""
        counts = [n * rows_per_request for n in requests_per_adapter(name, requests)]
        return Mix(tuple(counts), tuple(ranks[i % len(ranks)] for i in range(len(counts))))

    @property
    def num_rows(self) -> int:
        return sum(self.counts)

    @property
    def num_adapters(self) -> int:
        return len(self.counts)

    @property
    def row_adapter(self) -> list[int]:
        return [adapter for adapter, count in enumerate(self.counts) for _ in range(count)]


def adapter_elements(base: NativeConfig, rank: int) -> int:
    """Numbers in one layer of an adapter on all seven modules."""
    return rank * sum(site.numbers_per_rank for site in layer_sites(base).values())


def lora_bytes(base: NativeConfig, mix: Mix, itemsize: int) -> int:
    """What the LoRA of one layer must move: A and B of each adapter once, x once, y read and
    written, h (fp32) written and read."""
    weights = sum(adapter_elements(base, rank) for rank in mix.ranks) * itemsize
    sites = layer_sites(base).values()
    inputs = sum(site.in_features for site in sites)
    outputs = sum(site.out_features for site in sites)
    slices = sum(len(site.slices) for site in sites)
    hidden = sum(c * r for c, r in zip(mix.counts, mix.ranks, strict=True)) * slices * 8
    return weights + mix.num_rows * (inputs + 2 * outputs) * itemsize + hidden


def lora_footprint(base: NativeConfig, mix: Mix, itemsize: int) -> int:
    """What lies in memory for the LoRA of one layer: A, B, x and y, each once."""
    weights = sum(adapter_elements(base, rank) for rank in mix.ranks)
    rows = sum(site.in_features + site.out_features for site in layer_sites(base).values())
    return (weights + mix.num_rows * rows) * itemsize


def layer_bytes(base: NativeConfig, itemsize: int) -> int:
    """The matrices of one layer of the base model."""
    sites = layer_sites(base).values()
    return sum(site.in_features * site.out_features for site in sites) * itemsize


def kv_bytes(base: NativeConfig, tokens: int, itemsize: int) -> int:
    """K and V of so many tokens in every layer."""
    return 2 * base.num_layers * base.num_kv_heads * base.head_dim * tokens * itemsize


def decode_bytes(
    base: NativeConfig, contexts: Sequence[int], ranks: Sequence[int], itemsize: int
) -> int:
    """What one decode pass must read: all matrices (not the embedding), the KV of all contexts,
    and the adapters in use, of rank `ranks[i]`."""
    head = base.vocab_size * base.hidden_size * itemsize
    adapters = sum(adapter_elements(base, rank) for rank in ranks) * base.num_layers * itemsize
    weights = base.num_layers * layer_bytes(base, itemsize) + head
    return weights + adapters + kv_bytes(base, sum(contexts), itemsize)
