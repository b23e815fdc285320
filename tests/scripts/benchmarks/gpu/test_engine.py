"""The engine's section of the GPU benchmark: which pass a time belongs to."""

import time
from typing import Any, cast

import pytest
import torch

from benchmarks.gpu.engine import SMALL, Served, _mixed
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.shapes import TINY
from benchmarks.host.waiting_runner import WaitingPass
from multilora.forward.base_model import KVCache
from multilora.scheduling.batch import Batch

DECODE_SECONDS, MIXED_SECONDS = 0.005, 0.05


class ClockRunner:
    """A device that runs passes one after another, and only takes time."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.kv = KVCache(TINY, 16, 16, torch.float32, torch.device("cpu"))
        self._free_at = 0.0

    def launch(self, batch: Batch) -> WaitingPass:
        decodes = all(item.num_new_tokens == 1 for item in batch.items)
        start = max(self._free_at, time.monotonic())
        self._free_at = start + (DECODE_SECONDS if decodes else MIXED_SECONDS)
        return WaitingPass([item for item in batch.items if item.samples], self._free_at)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_pass_with_a_prompt_has_its_own_time(depth: int) -> None:
    setting = Setting(torch.device("cpu"), True, 5.0, None)
    served = Served(cast(Any, ClockRunner(depth)), cast(Any, None), SMALL, 1e9, setting)
    for row in _mixed(served, 2):
        assert row["of_decode"] > 2, row
