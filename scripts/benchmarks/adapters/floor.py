"""What a load costs at the least: the same bytes read, hashed and copied with nothing around it.

One thread, files in the page cache; buffers are taken in turn so that none is still in the
processor's caches.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common.statistics import median

_BUFFERS = 8
_ROUNDS = 3
_MILLI = 1000


@dataclass(frozen=True)
class LoadFloor:
    """Seconds for one adapter: `read` its file, `digest` (SHA-256), `copy` a page once."""

    file_bytes: int
    page_bytes: int
    read: float
    digest: float
    copy: float

    @property
    def load(self) -> float:
        """From the disk to the pool: read, digest, pack into a page of the pool."""
        return self.read + self.digest + self.copy

    def __str__(self) -> str:
        rate = self.page_bytes / self.copy / 1e9
        return (
            f"read {self.file_bytes / 1e6:.1f} MB {self.read * _MILLI:.1f} ms + SHA-256 "
            f"{self.digest * _MILLI:.1f} ms + a copy of {self.page_bytes / 1e6:.1f} MB at "
            f"{rate:.1f} GB/s {self.copy * _MILLI:.1f} ms = {self.load * _MILLI:.1f} ms"
        )


def measure_floor(files: list[Path], page_bytes: int) -> LoadFloor:
    """`files` are the weights of different adapters."""
    contents = [path.read_bytes() for path in files]
    sources = [torch.ones(page_bytes, dtype=torch.uint8) for _ in range(_BUFFERS)]
    targets = [torch.ones(page_bytes, dtype=torch.uint8) for _ in range(_BUFFERS)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return LoadFloor(
            file_bytes=max(map(len, contents)),
            page_bytes=page_bytes,
            read=_seconds(lambda i: files[i % len(files)].read_bytes()),
            digest=_seconds(lambda i: hashlib.sha256(contents[i % len(files)]).digest()),
            copy=_seconds(lambda i: targets[i].copy_(sources[i])),
        )
    finally:
        torch.set_num_threads(threads)


def _seconds(work: Callable[[int], object]) -> float:
    """The median of what work(0 … _BUFFERS - 1) take."""
    taken: list[float] = []
    for _ in range(_ROUNDS):
        for index in range(_BUFFERS):
            start = time.perf_counter()
            work(index)
            taken.append(time.perf_counter() - start)
    return median(taken)
