"""Paged attention compiles ahead of time for every kind of GPU, and as it was meant to.

K and V are on their way while others are computed on, what a program needs of shared memory is
there, and on Hopper no register operand of a wgmma is in flight at a branch.
"""

import re
from typing import Any

import pytest
import torch

from multilora_kernels import paged_decode, paged_prefill, unpaged_prefill
from multilora_kernels.paged_tile import Scores
from support.kernels.aot import CAPABILITIES, Launch, compile_launch, record, stack_bytes
from support.kernels.cases import AttentionCase, attention_case, random_sinks
from support.kernels.hopper_ptx import register_operands

T = torch.Tensor
HALVES = [torch.float16, torch.bfloat16]
PLAIN = Scores(0.3)
HEAD_DIMS = [64, 80, 96, 128, 256]
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
CONSUMER_SHARED_BYTES = 99 << 10  # of an Ampere or Ada that runs what is compiled for 80
KERNELS = {
    "paged_decode_kernel": paged_decode, "decode_plan_kernel": paged_decode,
    "paged_prefill_kernel": paged_prefill, "unpaged_prefill_kernel": unpaged_prefill,
}  # fmt: skip


def inputs(case: AttentionCase) -> tuple[T, T, T, T, T, T, T]:
    return (case.q, case.k_cache, case.v_cache, case.cu_seqlens_q, case.context_lens,
            case.block_tables, torch.empty_like(case.q))  # fmt: skip


def run_decode(case: AttentionCase, scores: Scores = PLAIN) -> None:
    q, k_cache, v_cache, cu_seqlens, contexts, tables, out = inputs(case)
    work = paged_decode.decode_work(q, k_cache.shape[2], cu_seqlens, contexts, None)
    paged_decode.decode_gpu(q, k_cache, v_cache, cu_seqlens, tables, out, scores, work)


def prefill(
    head_dim: int, dtype: torch.dtype, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> Launch:  # fmt: skip
    case = attention_case([(20, 20), (20, 40)], (8, 2), head_dim, dtype=dtype)
    (launch,) = record(lambda: run_prefill(case, window), KERNELS, monkeypatch)
    return launch


def check(compiled: Any, capability: int) -> None:
    """Shared memory is there, and K and V are loaded asynchronously."""
    limit = CONSUMER_SHARED_BYTES if capability == 80 else SHARED_BYTES[capability]
    assert compiled.metadata.shared <= limit
    assert "cp.async.cg" in compiled.asm["ptx"]


@pytest.mark.parametrize("sequences", [1, 3])
@pytest.mark.parametrize(("head_dim", "dtype"), [*((n, torch.bfloat16) for n in HEAD_DIMS),
                                                 (128, torch.float16)])  # fmt: skip
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_decode(
    capability: int, head_dim: int, dtype: torch.dtype, sequences: int,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """Few sequences, and more than there are multiprocessors."""
    case = attention_case([(1, 20)] * sequences, (8, 2), head_dim, dtype=dtype)
    plan, attend = record(lambda: run_decode(case), KERNELS, monkeypatch)
    compiled = compile_launch(attend, capability)
    check(compiled, capability)
    assert "mma.sync" in compiled.asm["ptx"]
    assert "wgmma" not in compiled.asm["ptx"]
    waits = [int(n) for n in re.findall(r"cp\.async\.wait_group\s+(\d+)", compiled.asm["ptx"])]
    assert max(waits) >= 2, "nothing is in flight while a block is computed on"
    assert stack_bytes(compiled) == 0
    assert compile_launch(plan, capability).metadata.shared < 16 << 10


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("head_dim", "dtype", "window"),
    [
        *((head_dim, torch.bfloat16, None) for head_dim in HEAD_DIMS),
        (128, torch.float16, 4096), (256, torch.float16, 4096),
    ],
)  # fmt: skip
def test_prefill(
    head_dim: int, dtype: torch.dtype, window: int | None, capability: int,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    compiled = compile_launch(prefill(head_dim, dtype, window, monkeypatch), capability)
    check(compiled, capability)
    if capability == 90:
        count, in_flight = register_operands(compiled.asm["ptx"])
        assert count
        assert not in_flight


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("heads", [(8, 2), (7, 1), (16, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_float32_fits_any_gpu(
    head_dim: int, heads: tuple[int, int], capability: int, monkeypatch: pytest.MonkeyPatch
):
    """No tensor cores: the operands lie in registers, and what does not fit there is slow."""
    for new, run in ((1, run_decode), (600, run_prefill)):
        case = attention_case([(new, 600)] * 2, heads, head_dim, dtype=torch.float32)
        launches = record(lambda case=case, run=run: run(case), KERNELS, monkeypatch)
        compiled = compile_launch(launches[-1], capability)
        assert compiled.metadata.shared <= CONSUMER_SHARED_BYTES
        assert stack_bytes(compiled) <= 64, "bytes per thread"


def run_prefill(case: AttentionCase, window: int | None = None, scores: Scores = PLAIN) -> None:
    tiles, out = case.tiles(), torch.empty_like(case.q)
    caches = (case.k_cache, case.v_cache)
    paged_prefill.prefill_gpu(case.q, *caches, tiles, case.block_tables, out, scores, window)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 64), (128, 128), (192, 128), (256, 256)])
@pytest.mark.parametrize(("softcap", "sinks"), [(50.0, False), (None, True)])
def test_soft_caps_sinks_and_values_of_another_size(
    softcap: float | None, sinks: bool, head_dim: int, value_dim: int, capability: int,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    dtype = torch.bfloat16
    scores = Scores(0.3, softcap, random_sinks(8, dtype) if sinks else None)
    for new, run in ((1, run_decode), (20, run_prefill)):
        case = attention_case([(new, 40)] * 2, (8, 2), head_dim, dtype=dtype, value_dim=value_dim)
        launches = record(lambda case=case, run=run: run(case, scores=scores), KERNELS, monkeypatch)
        compiled = compile_launch(launches[-1], capability)
        check(compiled, capability)
        if capability == 90:
            assert not register_operands(compiled.asm["ptx"])[1]


def test_rows_are_taken_where_they_can_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unpaged_prefill, "has_tensor_descriptors", lambda _: True)
    takes, half = unpaged_prefill.takes_rows, torch.empty(1, dtype=torch.bfloat16)
    assert takes(half, 80, None) and not takes(half, 80, 4096)
    assert not takes(half, 20, None), "heads at multiples of 16 bytes"
    assert not takes(half.float(), 80, None)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_unpaged_prefill(head_dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """On Hopper two programs share a multiprocessor."""
    case = attention_case([(20, 20), (70, 70)], (8, 2), head_dim, dtype=dtype)
    (launch,) = record(
        lambda: unpaged_prefill.unpaged_prefill_gpu(
            case.q, case.k, case.v, case.tiles(), case.cu_seqlens_q, torch.empty_like(case.q), 0.3
        ),
        KERNELS, monkeypatch,
    )  # fmt: skip
    compiled = compile_launch(launch, 90)
    assert "cp.async.bulk.tensor" in compiled.asm["ptx"]
    count, in_flight = register_operands(compiled.asm["ptx"])
    assert count
    assert not in_flight
    assert stack_bytes(compiled) == 0
    if head_dim <= 128:
        assert 2 * (compiled.metadata.shared + 1024) <= 228 << 10
    assert compile_launch(launch, 100).metadata.shared <= SHARED_BYTES[100]
