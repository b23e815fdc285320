"""Every kernel compiles ahead of time for sm80, sm90 and sm100, without a GPU."""

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from multilora_kernels.expand import expand_kernel
from multilora_kernels.kv_write import kv_write_kernel
from multilora_kernels.paged_attention import paged_attention_kernel
from multilora_kernels.shrink import shrink_kernel

LORA = {"RANKS": 48, "BLOCK_R": 64, "BLOCK_K": 64}
ATTENTION = {"GROUP": 4, "HEAD_DIM": 128, "BLOCK_SIZE": 16, "BLOCK_D": 128, "BLOCK_N": 64}
CASES = {
    "shrink decode": (shrink_kernel, {"x": "T", "a": "T", "h": "fp32"}, LORA | {"BLOCK_M": 16}, 3),
    "shrink prefill": (shrink_kernel, {"x": "T", "a": "T", "h": "fp32"}, LORA | {"BLOCK_M": 64}, 1),
    "expand decode": (
        expand_kernel, {"h": "fp32", "b": "T", "y": "T"},
        {"RANKS": 48, "SPLITS": 4, "BLOCK_M": 16, "BLOCK_N": 128}, 1),
    "expand prefill": (
        expand_kernel, {"h": "fp32", "b": "T", "y": "T"},
        {"RANKS": 48, "SPLITS": 1, "BLOCK_M": 64, "BLOCK_N": 128}, 1),
    "attention decode": (
        paged_attention_kernel, {"q": "T", "k": "T", "v": "T", "out": "T"},
        ATTENTION | {"BLOCK_Q": 4, "BLOCK_M": 16}, 2),
    "attention prefill": (
        paged_attention_kernel, {"q": "T", "k": "T", "v": "T", "out": "T"},
        ATTENTION | {"BLOCK_Q": 16, "BLOCK_M": 64}, 2),
    "kv write": (
        kv_write_kernel, {"k": "T", "v": "T", "k_cache": "T", "v_cache": "T", "slots": "i64"},
        {"WIDTH": 1024, "BLOCK": 1024}, 1),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", CASES)
def test_compiles(name: str, capability: int, dtype: str):
    kernel, pointers, constants, stages = CASES[name]
    signature: dict[str, str] = {}
    for argument in kernel.arg_names:
        if argument.endswith("_ptr"):
            kind = pointers.get(argument.removesuffix("_ptr"), "i32")
            signature[argument] = "*" + (dtype if kind == "T" else kind)
        else:
            kinds = {"scale": "fp32"}
            signature[argument] = (
                "constexpr" if argument in constants else kinds.get(argument, "i32")
            )
    source = ASTSource(
        kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()}
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 4, "num_stages": stages},
    )  # fmt: skip
    assert len(compiled.asm["cubin"]) > 1000
