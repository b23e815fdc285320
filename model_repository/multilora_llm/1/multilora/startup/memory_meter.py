"""Meter: how much of a GPU's memory is in use, and by whom."""

import gc
from typing import NamedTuple, Protocol

import torch


class Reading(NamedTuple):
    """Bytes of a GPU."""

    total: int
    free: int
    reserved: int  # by torch
    peak: int  # the most that torch has reserved since the last reset

    @property
    def elsewhere(self) -> int:
        """What other processes and CUDA itself hold."""
        return self.total - self.free - self.reserved


class Meter(Protocol):
    """How the memory of a GPU is read; tests put numbers of their own here."""

    def settle(self) -> None:
        """Wait until the GPU is idle, and free the memory that torch holds without using it."""
        ...

    def reset(self) -> None:
        """Begin a new peak."""
        ...

    def read(self) -> Reading: ...


class CudaMeter:
    """The Meter of a real GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def settle(self) -> None:
        torch.cuda.synchronize(self._device)
        gc.collect()
        torch.cuda.empty_cache()

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> Reading:
        free, total = torch.cuda.mem_get_info(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        return Reading(total, free, reserved, torch.cuda.max_memory_reserved(self._device))
