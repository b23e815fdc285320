"""What every contender is asked on a CPU, and how fast memory alone would let it be answered."""

import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.common.statistics import median
from benchmarks.gpu.shapes import decode_bytes, layer_bytes
from multilora.base_model.config import NativeConfig

MODES = ("none", "distinct")  # what the requests of a batch name: the base, or an adapter each
_ITEMSIZE = 2  # bfloat16
_READ_BYTES = 1 << 30  # more than any cache holds
_READS = 5


@dataclass(frozen=True)
class DecodeLoad:
    """Batches of requests that are sent at once; request k of mode distinct names adapter
    k mod len(adapters). `base` and `adapters` are folders; lengths are in tokens."""

    base: Path
    adapters: tuple[Path, ...]
    batches: tuple[int, ...]
    modes: tuple[str, ...]
    prompt_tokens: int
    new_tokens: int
    threads: int

    @cached_property
    def config(self) -> NativeConfig:
        return NativeConfig.from_folder(self.base)

    @property
    def num_parameters(self) -> int:
        """Of the matrices."""
        base = self.config
        embeddings = 1 if base.tie_word_embeddings else 2
        layers = base.num_layers * layer_bytes(base, 1)
        return layers + embeddings * base.vocab_size * base.hidden_size

    def pass_bytes(self, mode: str, batch: int) -> int:
        """What one decode pass must read: matrices, the adapters in use, and K and V of contexts
        that are half through their answers."""
        used = self.adapters[:batch] if mode == "distinct" else ()
        context = self.prompt_tokens + self.new_tokens // 2
        return decode_bytes(self.config, [context] * batch, [*map(_rank, used)], _ITEMSIZE)


def read_bandwidth(threads: int) -> float:
    """Bytes per second at which so many threads read memory."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        source = torch.ones(_READ_BYTES // 4)
        taken: list[float] = []
        for _ in range(_READS):
            start = time.perf_counter()
            source.sum()
            taken.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return source.nbytes / median(taken)


def _rank(adapter: Path) -> int:
    return json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]
