"""An AdapterManager with its loader, a pool and folders, driven by hand instead of by an engine."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from multilora.adapters.checkpoint.adapter import Adapter
from multilora.adapters.memory.manager import AdapterManager
from multilora.adapters.naming.source import AdapterSource
from multilora.base_model.config import NativeConfig
from multilora.lora.rank_pages import RankPagePool
from multilora.request import AdapterSet
from multilora.scheduling.adapter_cache import CacheMiss
from support.engine.reading import read_adapter
from support.tiny.base import write_adapter


class Workshop:
    """A manager of one-page adapters in `root`; reading waits while `gate` is closed."""

    def __init__(self, root: Path, num_pages: int = 2, host_adapters: int = 8) -> None:
        self.root = root
        self.base = NativeConfig.from_folder(root / "base")
        self.gate = threading.Event()
        self.gate.set()
        self.num_reads = 0
        tensors = RankPagePool(self.base.sites, num_pages, torch.float32, "cpu")
        self.host_bytes = (root / "a/adapter_model.safetensors").stat().st_size  # of an adapter
        self.wake = threading.Event()
        self.manager = AdapterManager(
            self._read, tensors, host_adapters * self.host_bytes, self.wake.set
        )

    def _read(self, source: AdapterSource) -> Adapter:
        self.num_reads += 1
        assert self.gate.wait(10)
        folder = Path(source.location)
        return read_adapter(folder, source.adapter_id, self.base.sites, torch.float32, 64)

    def source(self, name: str) -> AdapterSource:
        return AdapterSource(name, str(self.root / name))

    def write(self, name: str, seed: int, rank: int = 8) -> None:
        write_adapter(self.root / name, seed, rank)

    def settle(self) -> None:
        """What the engine does between steps, until nothing is under way."""
        deadline = time.monotonic() + 10
        while self.manager.loading or self.manager.device.is_copying:
            assert time.monotonic() < deadline
            self.wake.wait(0.1)
            self.wake.clear()
            self.manager.poll()

    def ask(self, name: str) -> AdapterSet | CacheMiss:
        """As the scheduler, in one pass."""
        return self.manager.acquire(AdapterSet.of(name))

    def acquire(self, name: str) -> AdapterSet:
        """As the scheduler: ask in every pass until the adapter is there."""
        self.manager.register(self.source(name))
        for _ in range(5):
            found = self.ask(name)
            if isinstance(found, AdapterSet):
                return found
            assert found is CacheMiss.LOADING
            self.settle()
        raise AssertionError(f"{name} does not come")


MakeShop = Callable[..., Workshop]
