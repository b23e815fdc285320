"""OpenAI Triton, which a CPU needs only to test the kernels.

Where it is not installed the kernels can still be defined, so their modules import and the CPU
paths work; launching one raises ModuleNotFoundError. Importing this looks at no driver.
"""

import functools
import importlib
import importlib.util
import os
from types import SimpleNamespace
from typing import Any

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels run on tensors of the CPU
_INTERPRETED_PROGRAMS = 4  # of a persistent grid: each costs milliseconds


class _NotInstalled:
    """Stands for a kernel.

    Kernels name the integers that differ from batch to batch in `do_not_specialize`: OpenAI Triton
    would compile one anew for a 1, for a multiple of 16 and for other values, while requests wait.
    """

    def __init__(self, function: object) -> None:
        self._function = function

    def __getitem__(self, grid: object) -> Any:
        raise ModuleNotFoundError(
            f"{self._function} runs on OpenAI Triton, which is not installed: pip install triton"
        )


def _jit(function: object = None, **_: object) -> Any:
    return _NotInstalled if function is None else _NotInstalled(function)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is n or more, n >= 1."""
    return 1 << (n - 1).bit_length()


def uses_kernels(tensor: torch.Tensor) -> bool:
    """Whether ops on `tensor` run as kernels: on a GPU, or interpreted."""
    return tensor.is_cuda or INTERPRETED


def has_tensor_descriptors(tensor: torch.Tensor) -> bool:
    """Whether the GPU of `tensor` loads blocks of a matrix at once: Hopper and later."""
    if not tensor.is_cuda:
        return INTERPRETED
    return torch.cuda.get_device_capability(tensor.device) >= (9, 0)


def tensor_descriptor(tensor: torch.Tensor, block: list[int]) -> Any:
    """Of a matrix that a kernel loads by blocks [rows, columns]; beyond its end it is 0.

    Columns adjacent, rows and `tensor` itself at multiples of 16 bytes.
    """
    module = importlib.import_module("triton.tools.tensor_descriptor")
    return module.TensorDescriptor.from_tensor(tensor, block)


def num_programs(tensor: torch.Tensor, per_multiprocessor: int) -> int:
    """How many programs a persistent grid has, on the device of `tensor`."""
    if not tensor.is_cuda:
        return _INTERPRETED_PROGRAMS
    return _num_multiprocessors(tensor.device) * per_multiprocessor


def early_launch(tensor: torch.Tensor) -> dict[str, bool]:
    """Launch options of a kernel that calls wait_if_early before it reads what others wrote.

    On Hopper and later it is launched while the kernel before it still runs, so that its programs
    are there when that one ends (programmatic dependent launch); elsewhere after it, as usual.
    """
    if tensor.is_cuda and _launches_early(tensor.device):
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}


@functools.cache
def _launches_early(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)


@functools.cache
def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


triton: Any
tl: Any
if importlib.util.find_spec("triton"):
    triton = importlib.import_module("triton")
    tl = importlib.import_module("triton.language")
else:
    triton, tl = SimpleNamespace(jit=_jit), SimpleNamespace(constexpr=int)


@triton.jit
def wait_if_early(EARLY: tl.constexpr):
    """Until all that was launched before is done, and what it wrote can be read; see
    early_launch."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
