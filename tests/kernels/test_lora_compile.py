"""Shrink and expand compile ahead of time for every kind of GPU, and as they were meant to.

For all projections of Llama 3 8B: pages come 16 bytes at a time and, where that may be, while
others are computed on; what a program needs of shared memory is there on small GPUs too; and no
wgmma has a register operand, which ptxas before 13.3 may overwrite while it is in flight.
"""

import re
from typing import NamedTuple

import pytest
import torch

from multilora_kernels import expand, shrink
from support.kernels.aot import CAPABILITIES, Launch, compile_launch, record, stack_bytes
from support.kernels.cases import LoRACase
from support.kernels.hopper_ptx import register_operands

HALVES = [torch.float16, torch.bfloat16]
PROJECTIONS = {  # in_features, columns of each slice
    "qkv": (4096, (4096, 1024, 1024)),
    "o": (4096, (4096,)),
    "gate_up": (4096, (14336, 14336)),
    "down": (14336, (4096,)),
}
MIXES = {"decode": [1, 1], "many decode": [1] * 40, "prefill": [64], "long prefill": [640, 64]}
SHARED_BYTES = 99 << 10  # of an Ampere or Ada for consumers; the others have more
MULTIPROCESSORS = 8


class Pair(NamedTuple):
    shrink: Launch
    expand: Launch
    delta: Launch  # an expand that stores its sum instead of adding it


def launches(
    mix: str, projection: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> Pair:
    """As on a GPU with few multiprocessors."""
    case = lora_tensors(projection, MIXES[mix], dtype)
    for module in (shrink, expand):
        monkeypatch.setattr(module, "num_programs", lambda _, each: MULTIPROCESSORS * each)
    segments = case.segments()

    def run() -> None:
        h = shrink.shrink_gpu(case.x, case.a, segments)
        for add in (True, False):
            expand.expand_gpu(h, case.b, case.slice_sizes, segments, case.y, add)

    kernels = {"shrink_kernel": shrink, "expand_kernel": expand}
    return Pair(*record(run, kernels, monkeypatch))


def lora_tensors(projection: str, mix: list[int], dtype: torch.dtype) -> LoRACase:
    in_features, sizes = PROJECTIONS[projection]
    rows = sum(mix)
    return LoRACase(
        torch.empty(rows, in_features, dtype=dtype),
        torch.empty(3, len(sizes), 16, in_features, dtype=dtype),
        torch.empty(3, 16, sum(sizes), dtype=dtype),
        torch.empty(rows, sum(sizes), dtype=dtype),
        sizes, mix, [(0, 2)] * len(mix),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_compiles(
    projection: str,
    mix: str,
    capability: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
):
    compiled = [
        compile_launch(launch, capability)
        for launch in launches(mix, projection, dtype, monkeypatch)
    ]
    assert max(one.metadata.shared for one in compiled) <= SHARED_BYTES
    for one in compiled:
        assert not re.search(r"(ld|st)\.global\.b16", one.asm["ptx"])
        assert stack_bytes(one) == 0
        assert register_operands(one.asm["ptx"]) == (0, False)
        assert ("wgmma" in one.asm["ptx"]) == (capability == 90 and "prefill" in mix)
    assert "cp.async.cg" in compiled[0].asm["ptx"]


def test_what_a_launch_has_follows_from_the_size_of_the_work(monkeypatch: pytest.MonkeyPatch):
    """A few pages occupy many multiprocessors, and no more splits than that takes."""
    for mix, rows, splits in (
        ("decode", 16, 8), ("many decode", 16, 8), ("prefill", 64, 8), ("long prefill", 64, 2),
    ):  # fmt: skip
        for projection in PROJECTIONS:
            found = launches(mix, projection, torch.bfloat16, monkeypatch)
            assert {launch.keywords["BLOCK_M"] for launch in found} == {rows}
            names = found.shrink.kernel.arg_names
            assert found.shrink.arguments[names.index("splits")] == splits


def test_a_register_operand_in_flight_would_be_seen():
    multiply = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r1,%r2}, {%r3,%r4}, %rd1, 1;"
    wait, branch = "wgmma.wait_group.sync.aligned 0;", "@%p1 bra $L__BB0_2;"
    assert register_operands("\n".join((multiply, branch, wait))) == (1, True)
    assert register_operands("\n".join((multiply, wait, branch))) == (1, False)
