"""How much is measured, and with what: the benchmark of the adapters' life, in full or quickly."""

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.adapters.checkpoint import CACHE, LLAMA_100M, TINY, Checkpoints, Shape
from benchmarks.adapters.client import engine_config
from benchmarks.adapters.floor import LoadFloor, measure_floor
from multilora.base_model.config import NativeConfig
from multilora.config import EngineConfig
from multilora.lora.rank_pages import bytes_per_page


@dataclass(frozen=True)
class BenchmarkPlan:
    """Times are in seconds, lengths in tokens. `…_rounds` are how often phases alternate.

    1: `pairs` of a cold and a warm request. 2: `streams` run while `loads` adapters are loaded.
    3: `concurrency` requests in flight for `room_seconds`, output lengths vary around
    `room_tokens`. 4: `many_concurrency` requests in flight for `many_seconds`, `many` adapters,
    `many_room` of them in the device pool and `many_host` in host memory.
    """

    shape: Shape
    pairs: int
    streams: int
    loads: int
    stream_rounds: int
    stream_tokens: int
    room_rounds: int
    room_seconds: float
    many: int
    many_room: int
    many_host: int
    many_rounds: int
    many_seconds: float
    dtype: str = "bfloat16"  # on a CPU with avx512_bf16 several times faster than float32
    prompt: int = 64
    concurrency: int = 8
    room_tokens: int = 16
    many_concurrency: int = 16
    many_prompt: int = 32
    many_tokens: int = 32
    cache: Path = CACHE

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.shape, self.cache)

    def config(self, adapters: int, room: int, host_room: int) -> EngineConfig:
        """An adapters directory with so many adapters, room for some of them."""
        files = self.checkpoints
        folder = files.adapters(adapters)
        return engine_config(files.base(), folder, self.dtype, room=room, host_room=host_room)

    def floor(self) -> LoadFloor:
        """What a load costs at the least, measured now."""
        files = self.checkpoints
        base = NativeConfig.from_folder(files.base())
        weights = sorted(files.adapters(8).glob("*/adapter_model.safetensors"))
        return measure_floor(weights, bytes_per_page(base.sites, getattr(torch, self.dtype)))


FULL = BenchmarkPlan(
    shape=LLAMA_100M,
    pairs=60,
    streams=8,
    loads=50,
    stream_rounds=4,
    stream_tokens=4000,
    room_rounds=5,
    room_seconds=10.0,
    many=2000,
    many_room=64,
    many_host=400,
    many_rounds=3,
    many_seconds=20.0,
)
QUICK = BenchmarkPlan(
    shape=TINY,
    pairs=5,
    streams=2,
    loads=5,
    stream_rounds=2,
    stream_tokens=4000,
    room_rounds=2,
    room_seconds=0.4,
    many=40,
    many_room=20,
    many_host=30,
    many_rounds=2,
    many_seconds=0.5,
)
