"""RMS norm, SwiGLU, and RoPE with KV write compile ahead of time for every kind of GPU.

In the sizes of Llama 3 8B, and RoPE for heads of other models.
"""

import re
from typing import Any

import pytest
import torch

from multilora_kernels import rms_norm, rope_kv_write, swiglu
from multilora_kernels.lora import LoRAUpdate
from multilora_kernels.segments import LoRASegments
from support.kernels.aot import CAPABILITIES, Launch, compile_launch, record, stack_bytes
from support.kernels.consumers import rope_case
from support.kernels.hopper_ptx import register_operands

HALVES = [torch.float16, torch.bfloat16]
WAYS = ["plain", "decode", "prefill"]  # without an update; with one, in short or tall tiles
ROWS = 40


def pending(way: str, slice_sizes: tuple[int, ...], dtype: torch.dtype) -> LoRAUpdate | None:
    """Of two adapters, with as many splits as shrink makes of 4096 features."""
    if way == "plain":
        return None
    counts, splits = ([1, 1], 8) if way == "decode" else ([20, 20], 2)
    segments = LoRASegments.from_lists([0, counts[0]], counts, [[0, 2], [1]], ROWS, "cpu", dtype)
    h = torch.empty(splits, len(segments.pairs), segments.tile_rows, len(slice_sizes) * 16)
    return LoRAUpdate(h, torch.empty(3, 16, sum(slice_sizes), dtype=dtype), slice_sizes, segments)


def check(compiled: Any, way: str, capability: int) -> None:
    """Next to nothing spilled, nothing read or written by single numbers, no wgmma in flight."""
    ptx = compiled.asm["ptx"]
    assert stack_bytes(compiled) <= 8, "bytes per thread"
    assert not re.search(r"(ld|st)\.global\.b16", ptx)
    if capability == 90:
        count, in_flight = register_operands(ptx)
        assert (count > 0) == (way == "prefill")
        assert not in_flight


def rope_launch(
    way: str, head_dim: int, qk_norm: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> Launch:
    heads, kv_heads = 32, 8
    case = rope_case(ROWS, (heads, kv_heads), head_dim, qk_norm, dtype, "cpu")
    sizes = (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
    qkv, update = torch.empty(ROWS, sum(sizes), dtype=dtype), pending(way, sizes, dtype)
    (launch,) = record(
        lambda: rope_kv_write.rope_kv_write_gpu(
            qkv, case.rope, case.kv_slots, case.k_cache, case.v_cache, heads, kv_heads,
            case.qk_norm, 1e-5, update,
        ),
        {"rope_kv_write_kernel": rope_kv_write}, monkeypatch,
    )  # fmt: skip
    return launch


def swiglu_launch(way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Launch:
    gate_up = torch.empty(ROWS, 2 * 14336, dtype=dtype)
    update = pending(way, (14336, 14336), dtype)
    (launch,) = record(
        lambda: swiglu.swiglu_gpu(gate_up, update), {"swiglu_kernel": swiglu}, monkeypatch
    )
    return launch


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("width", [2880, 4096])
def test_rms_norm(width: int, capability: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    x = torch.empty(ROWS, width, dtype=dtype)
    (launch,) = record(
        lambda: rms_norm.rms_norm_gpu(x, x[0], 1e-5), {"rms_norm_kernel": rms_norm}, monkeypatch
    )
    check(compile_launch(launch, capability), "plain", capability)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("way", WAYS)
def test_swiglu(way: str, capability: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    compiled = compile_launch(swiglu_launch(way, dtype, monkeypatch), capability)
    check(compiled, way, capability)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("way", WAYS)
def test_rope_kv_write(
    way: str, head_dim: int, capability: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    qk_norm = head_dim in (80, 128)
    launch = rope_launch(way, head_dim, qk_norm, dtype, monkeypatch)
    check(compile_launch(launch, capability), way, capability)
