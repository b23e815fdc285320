"""RMS norm, SwiGLU, and KV write with RoPE or alone compile ahead of time for every kind of GPU.

In the sizes of Llama 3 8B, and RoPE for heads of other models.
"""

import re
from typing import Any

import pytest
import torch

from multilora_kernels import kv_write, rms_norm, rope_kv_write, swiglu
from multilora_kernels.lora import LoRAUpdate
from multilora_kernels.segments import LoRASegments
from support.kernels.aot import CAPABILITIES, Launch, compile_launch, record, stack_bytes
from support.kernels.consumers import rope_case
from support.kernels.hopper_ptx import register_operands

HALVES = [torch.float16, torch.bfloat16]
WAYS = ["plain", "delta", "expand"]  # without an update; with one that is, or is not expanded
NORMS = [*WAYS[:2], "wide"]  # the last has a weight in float32
ROWS = 40


def pending_update(slice_sizes: tuple[int, ...], dtype: torch.dtype) -> LoRAUpdate:
    """Of two adapters, in tall tiles."""
    segments = LoRASegments.from_lists([0, 20], [20, 20], [[0, 2], [1]], ROWS, "cpu", dtype)
    h = torch.empty(len(segments.pairs), segments.tile_rows, len(slice_sizes) * 16, dtype=dtype)
    return LoRAUpdate(h, torch.empty(3, 16, sum(slice_sizes), dtype=dtype), slice_sizes, segments)


def check(compiled: Any, multiplies: bool = False) -> None:
    """Nothing spilled, nothing read or written by single numbers; no wgmma has an operand in
    registers, which ptxas before 13.3 may overwrite while it is in flight."""
    ptx = compiled.asm["ptx"]
    assert stack_bytes(compiled) == 0, "bytes per thread"
    assert not re.search(r"(ld|st)\.global\.b16", ptx)
    assert ("wgmma" in ptx) == multiplies
    assert register_operands(ptx) == (0, False)


def rope_launch(
    way: str, head_dim: int, qk_norm: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> Launch:
    heads, kv_heads = 32, 8
    case = rope_case(ROWS, (heads, kv_heads), head_dim, qk_norm, dtype, "cpu")
    sizes = (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
    qkv = torch.empty(ROWS, sum(sizes), dtype=dtype)
    delta = torch.empty_like(qkv) if way == "delta" else None
    (launch,) = record(
        lambda: rope_kv_write.rope_kv_write_gpu(
            qkv, case.rope, case.kv_slots, case.k_cache, case.v_cache, heads, kv_heads,
            case.qk_norm, 1e-5, delta,
        ),
        {"rope_kv_write_kernel": rope_kv_write}, monkeypatch,
    )  # fmt: skip
    return launch


def kv_launch(
    head_dim: int, value_dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> Launch:
    """Of K with heads before rows in memory, of V with rows before heads."""
    k = torch.empty(8, ROWS, head_dim, dtype=dtype).transpose(0, 1)
    v = torch.empty(ROWS, 8, value_dim, dtype=dtype)
    k_cache = torch.empty(4, 16, 8, head_dim, dtype=dtype)
    v_cache = torch.empty(4, 16, 8, value_dim, dtype=dtype)
    slots = torch.zeros(ROWS, dtype=torch.int64)
    (launch,) = record(
        lambda: kv_write.kv_write_gpu(k, v, k_cache, v_cache, slots),
        {"kv_write_kernel": kv_write},
        monkeypatch,
    )
    return launch


def swiglu_launch(way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Launch:
    gate_up = torch.empty(ROWS, 2 * 14336, dtype=dtype)
    update: dict[str, Any] = {
        "plain": {},
        "delta": {"delta": gate_up},
        "expand": {"update": pending_update((14336, 14336), dtype)},
    }[way]
    (launch,) = record(
        lambda: swiglu.swiglu_gpu(gate_up, **update),
        {"swiglu_kernel": swiglu, "swiglu_expand_kernel": swiglu},
        monkeypatch,
    )
    return launch


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("width", [2880, 4096])
@pytest.mark.parametrize("way", NORMS)
def test_rms_norm(
    way: str, width: int, capability: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    x = torch.empty(ROWS, width, dtype=dtype)
    delta = x if way == "delta" else None
    weight = x[0].float() if way == "wide" else x[0]
    (launch,) = record(
        lambda: rms_norm.rms_norm_gpu(x, weight, 1e-5, delta),
        {"rms_norm_kernel": rms_norm},
        monkeypatch,
    )
    check(compile_launch(launch, capability))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("way", WAYS)
def test_swiglu(way: str, capability: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    compiled = compile_launch(swiglu_launch(way, dtype, monkeypatch), capability)
    check(compiled, multiplies=way == "expand" and capability == 90)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("way", WAYS[:2])
def test_rope_kv_write(
    way: str, head_dim: int, capability: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    qk_norm = head_dim in (80, 128)
    launch = rope_launch(way, head_dim, qk_norm, dtype, monkeypatch)
    check(compile_launch(launch, capability))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 64), (128, 128), (192, 128), (256, 256)])
def test_kv_write(
    head_dim: int, value_dim: int, capability: int, dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    check(compile_launch(kv_launch(head_dim, value_dim, dtype, monkeypatch), capability))


@pytest.mark.parametrize("capability", [90, 100])
def test_what_starts_early_waits_before_it_reads_what_others_write(
    capability: int, monkeypatch: pytest.MonkeyPatch
):
    for module in (kv_write, rms_norm, rope_kv_write, swiglu):
        options = {"EARLY": True, "launch_pdl": True}
        monkeypatch.setattr(module, "early_launch", lambda _, options=options: options)
    dtype = torch.bfloat16
    x = torch.empty(ROWS, 4096, dtype=dtype)
    weight = torch.empty(4096, dtype=dtype)
    launches = [
        rope_launch("delta", 128, False, dtype, monkeypatch),
        swiglu_launch("delta", dtype, monkeypatch),
        kv_launch(128, 128, dtype, monkeypatch),
        *record(
            lambda: rms_norm.rms_norm_gpu(x, weight, 1e-5, x),
            {"rms_norm_kernel": rms_norm},
            monkeypatch,
        ),
    ]
    for launch, loads_before in zip(launches, (0, 0, 0, 1), strict=True):
        compiled = compile_launch(launch, capability)
        before, wait, after = compiled.asm["ptx"].partition("griddepcontrol.wait")
        assert wait and "ld.global" in after
        assert ("ld.global" in before) == loads_before, "of the weight alone"
        assert "st.global" not in before
        assert compiled.metadata.launch_pdl
