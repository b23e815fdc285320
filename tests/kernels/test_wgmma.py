"""No register operand of a wgmma is still in flight when a loop goes round (Hopper).

ptxas before 13.3 may reuse the registers of such an operand before the wgmma has read them, so
each one must be waited for first. Compiled as launched on a GPU: pointers and strides aligned, or
else nothing is pipelined, and with the constants that the launchers choose.
"""

import re
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernel_cases import attention_case, lora_case
from multilora_kernels import expand, paged_attention, shrink

REGISTER_OPERAND = re.compile(r"wgmma\.mma_async.*\}, \{ ?%r")
WAIT_FOR_ALL = "wgmma.wait_group.sync.aligned 0;"
UNALIGNED = {"scale", "window", "max_pages", "size0", "size1", "size2", "in_features"}


class Recorder:
    """Takes a kernel's place and keeps the keywords it is launched with."""

    def __init__(self) -> None:
        self.keywords: dict[str, int] = {}

    def __getitem__(self, grid: object) -> Any:
        return lambda *_, **keywords: self.keywords.update(keywords)


def ptx(kernel: Any, keywords: dict[str, int]) -> str:
    constants = {name: value for name, value in keywords.items() if name in kernel.arg_names}
    options = {name: value for name, value in keywords.items() if name not in constants}
    integers = {"tiles_ptr", "pages_ptr", "cu_seqlens_ptr", "context_lens_ptr", "tables_ptr"}
    signature: dict[str, str] = {}
    attributes: dict[tuple[int], list[list[object]]] = {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name.endswith("_ptr"):
            signature[name] = (
                "*i32" if name in integers else "*fp32" if name == "h_ptr" else "*bf16"
            )
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
        if name not in UNALIGNED:
            attributes[(index,)] = [["tt.divisibility", 16]]
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, places, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


def register_operands(text: str) -> tuple[int, bool]:
    """How many there are, and whether one is in flight at a branch."""
    count, pending, in_flight = 0, False, False
    for line in map(str.strip, text.splitlines()):
        if REGISTER_OPERAND.match(line):
            count, pending = count + 1, True
        elif line.startswith(WAIT_FOR_ALL):
            pending = False
        elif re.match(r"(@!?%p\d+ )?bra", line):
            in_flight |= pending
    return count, in_flight


@pytest.mark.parametrize("head_dim", [64, 128])
def test_attention_prefill(head_dim: int, monkeypatch: pytest.MonkeyPatch):
    kernel, recorder = paged_attention.paged_attention_kernel, Recorder()
    monkeypatch.setattr(paged_attention, "paged_attention_kernel", recorder)
    case = attention_case([(64, 64)], (8, 2), head_dim)
    paged_attention.paged_attention_gpu(
        case.q, case.k_cache, case.v_cache, case.cu_seqlens_q, case.context_lens,
        case.block_tables, 1.0, case.max_seqlen_q, None,
    )  # fmt: skip
    count, in_flight = register_operands(ptx(kernel, recorder.keywords))
    assert count
    assert not in_flight


def test_shrink_and_expand_prefill(monkeypatch: pytest.MonkeyPatch):
    kernels = shrink.shrink_kernel, expand.expand_kernel
    shrinks, expands = Recorder(), Recorder()
    monkeypatch.setattr(shrink, "shrink_kernel", shrinks)
    monkeypatch.setattr(expand, "expand_kernel", expands)
    case = lora_case([64], [40], (64, 64, 64), 64)
    segments = case.segments()
    h = shrink.shrink_gpu(case.x, case.a, segments)
    expand.expand_gpu(h, case.b, case.slice_sizes, segments, torch.empty_like(case.y))
    assert not register_operands(ptx(kernels[0], shrinks.keywords))[1]
    count, in_flight = register_operands(ptx(kernels[1], expands.keywords))
    assert count
    assert not in_flight
