"""LoRAPlan: which of the ways to compute the adapters' updates a forward pass takes, on a GPU.

All give the same numbers up to rounding. Which is fastest depends on the card and on the size of
the batch, so it is measured at start (fastest_plan), where a GPU is there to measure.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

_ROUNDS = 6  # the first warms up


class LoRAPlan(NamedTuple):
    """`fused`: qkv and gate_up are expanded inside the kernel that reads them (RoPE and KV write,
    SiLU), instead of by a launch of their own. `overlapped`: shrinks run on a stream of their own
    beside the base model's product."""

    fused: bool = True
    overlapped: bool = False


PLANS = tuple(
    LoRAPlan(fused, overlapped) for fused in (True, False) for overlapped in (False, True)
)
DEFAULT_PLAN = PLANS[0]


def fastest_plan(
    prepare: Callable[[LoRAPlan], Callable[[], object]], load: Callable[[], None]
) -> LoRAPlan:
    """`prepare` makes what runs one pass with a plan; then `load` fills in what it runs on.

    Rounds are interleaved, so that a change of clocks meets all plans; the best time of each
    counts. Needs a GPU.
    """
    runs = [prepare(plan) for plan in PLANS]
    load()
    best = [float("inf")] * len(runs)
    for _ in range(_ROUNDS):
        for index, run in enumerate(runs):
            best[index] = min(best[index], _milliseconds(run))
    return PLANS[best.index(min(best))]


def _milliseconds(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
