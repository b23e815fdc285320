"""Ahead-of-time compilation of what a launcher launches, without a GPU.

record() notes the launches of a function; compile_launch() compiles one of them as the first call
on a GPU would: with its constants and options, and specialised for what its arguments are
(integers of 1 are constants; multiples of 16, and aligned pointers, are known as such, or else
nothing is pipelined).
"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from multilora_kernels.openai_triton import triton

CAPABILITIES = (80, 90, 100)
_POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.bool: "*i1",
    torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8",
}  # fmt: skip


class Launch(NamedTuple):
    kernel: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class _Recorder:
    """Takes a kernel's place and computes nothing."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self._kernel, self._launches = kernel, launches

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments, **keywords: self._launches.append(
            Launch(self._kernel, arguments, keywords)
        )


def record(
    run: Callable[[], object], kernels: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> list[Launch]:
    """Run `run` while the kernels (name → the module whose launcher uses it) only take notes."""
    launches: list[Launch] = []
    with monkeypatch.context() as patch:
        for name, module in kernels.items():
            patch.setattr(module, name, _Recorder(getattr(module, name), launches))
        run()
    assert launches, "nothing was launched"
    return launches


class Variant(NamedTuple):
    """What a launch is compiled for: launches of equal variants share their compiled kernel."""

    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list[list[object]]]
    options: dict[str, Any]


def variant(launch: Launch) -> Variant:
    kernel, arguments, keywords = launch
    named = dict(zip(kernel.arg_names, arguments, strict=False)) | {
        name: value for name, value in keywords.items() if name in kernel.arg_names
    }
    options = {name: value for name, value in keywords.items() if name not in kernel.arg_names}
    missing = set(kernel.arg_names) - set(named)
    assert not missing, f"{kernel} was launched without {missing}"
    result = Variant({}, {}, {}, options)
    for index, parameter in enumerate(kernel.params):
        name, value = parameter.name, named[parameter.name]
        special = not parameter.do_not_specialize
        one = special and type(value) is int and value == 1
        if parameter.is_constexpr or value is None or one:
            result.signature[name] = "constexpr"
            result.constants[(index,)] = value
            continue
        result.signature[name] = _type_of(value)
        if isinstance(value, TensorDescriptor):
            continue
        aligned = value.data_ptr() if isinstance(value, torch.Tensor) else value
        if special and not isinstance(value, float) and aligned % 16 == 0:
            result.attributes[(index,)] = [["tt.divisibility", 16]]
    return result


def compile_launch(launch: Launch, capability: int) -> Any:
    """The compiled kernel; `.asm` has "ptx" and "cubin"."""
    signature, constants, attributes, options = variant(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert len(compiled.asm["cubin"]) > 1000
    return compiled


def stack_bytes(compiled: Any) -> int:
    """Local memory of a thread: what registers have no room for."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, check=True)
    (stack,) = re.findall(rb"STACK:(\d+)", usage.stdout)
    return int(stack)


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{_POINTERS[value.base.dtype][1:]}{list(value.block_shape)}>"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"
