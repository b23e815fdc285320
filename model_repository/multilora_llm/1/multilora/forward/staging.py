"""StagingBuffer: the host arrays of one step, brought to the device by a single copy.

    staging = StagingBuffer(device)
    ids = staging.add(np.arange(3))
    staging.send()
    ids()  # int64 [3] on the device

Arrays travel side by side in one pinned buffer, so a step costs one asynchronous copy however many
arrays there are, and the host waits for nothing.
"""

from collections.abc import Callable

import numpy as np
import torch

Handle = Callable[[], torch.Tensor]  # the tensor, once send() has been called
_ALIGNMENT = 16  # bytes; OpenAI Triton compiles a kernel anew for a pointer that is less aligned
_DTYPES = {
    np.dtype(name): getattr(torch, name)
    for name in ("int64", "int32", "float32", "float64", "bool", "uint8")
}


class StagingBuffer:
    """For one step and one use. On a CPU the tensors are views of the arrays."""

    def __init__(self, device: torch.device, target: torch.Tensor | None = None) -> None:
        """`target`: the uint8 device buffer to fill (that of a captured CUDA graph) instead of a
        new one."""
        self._device = device
        self._target = target
        self._arrays: list[np.ndarray] = []
        self._tensors: list[torch.Tensor] = []

    def add(self, array: np.ndarray) -> Handle:
        """Take one more array, of a dtype that torch has; it must not change any more."""
        index = len(self._arrays)
        self._arrays.append(np.ascontiguousarray(array))
        return lambda: self._tensors[index]

    def send(self) -> None:
        """Copy all arrays, in the order of `add`, each at the next multiple of 16 bytes."""
        if self._device.type == "cpu" and self._target is None:
            self._tensors = [torch.from_numpy(array) for array in self._arrays]
            return
        starts, end = offsets([array.nbytes for array in self._arrays])
        host = torch.empty(end, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        for array, start in zip(self._arrays, starts, strict=True):
            host.numpy()[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        buffer = self._copy(host)
        self._tensors = [
            view(buffer, start, array.shape, _DTYPES[array.dtype])
            for array, start in zip(self._arrays, starts, strict=True)
        ]

    def _copy(self, host: torch.Tensor) -> torch.Tensor:
        target = self._target
        if target is not None and len(host) <= len(target):
            return target[: len(host)].copy_(host, non_blocking=True)
        buffer = host.to(self._device, non_blocking=True)
        if target is not None:  # what it has no room for is read where it is now
            target.copy_(buffer[: len(target)])
        return buffer


def offsets(sizes: list[int]) -> tuple[list[int], int]:
    """Where runs of `sizes` bytes start when each is aligned, and where the last one ends."""
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return starts, end


def view(
    buffer: torch.Tensor, start: int, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """A tensor that lies in the uint8 `buffer` from byte `start` on."""
    size = int(np.prod(shape)) * dtype.itemsize
    return buffer[start : start + size].view(dtype).view(shape)
