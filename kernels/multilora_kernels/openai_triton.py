"""OpenAI Triton, which a CPU needs only to test the kernels.

Where it is not installed the kernels can still be defined, so their modules import and the CPU
paths work; launching one raises ModuleNotFoundError. Importing this looks at no driver.
"""

import importlib
import importlib.util
from types import SimpleNamespace
from typing import Any


class _NotInstalled:
    """Stands for a kernel."""

    def __init__(self, function: object) -> None:
        self._function = function

    def __getitem__(self, grid: object) -> Any:
        raise ModuleNotFoundError(
            f"{self._function} runs on OpenAI Triton, which is not installed: pip install triton"
        )


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is n or more, n >= 1."""
    return 1 << (n - 1).bit_length()


triton: Any
tl: Any
if importlib.util.find_spec("triton"):
    triton = importlib.import_module("triton")
    tl = importlib.import_module("triton.language")
else:
    triton, tl = SimpleNamespace(jit=_NotInstalled), SimpleNamespace(constexpr=int)
