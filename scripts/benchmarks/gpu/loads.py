"""What a cold adapter costs: rank 16 on all projections, its files in the page cache.

The stages of a load beside their floors, then whole loads through the server's own manager: one
alone, and as many as a batch has rows at once.
"""

import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from benchmarks.gpu.setting import Record, Row, Setting
from multilora.adapters.checkpoint.adapter import AdapterReader
from multilora.adapters.memory.manager import AdapterManager
from multilora.adapters.naming.source import AdapterSource
from multilora.base_model.sites import modules
from multilora.lora.rank_pages import RankPagePool
from multilora.request import AdapterSet

_RANK = 16
_ROUNDS = 5
_AT_ONCE, _FILES = 32, 4
_QUIET_SECONDS = 0.1  # files just written are not read at once


def measure(setting: Setting, record: Record) -> None:
    with tempfile.TemporaryDirectory(dir=_memory_disk()) as scratch:
        count = 2 if setting.tiny else _AT_ONCE
        folders = _write_adapters(Path(scratch), setting, count + _ROUNDS)
        record.cell("stages", lambda: _stages(setting, folders[0]))
        record.cell("loads", lambda: _loads(setting, folders, count))


def _memory_disk() -> Path | None:
    disk = Path("/dev/shm")
    return disk if disk.is_dir() else None


def _stages(setting: Setting, folder: Path) -> list[Row]:
    base, dtype = setting.base, setting.dtype
    weights = folder / "adapter_model.safetensors"
    size = weights.stat().st_size
    buffer = memoryview(bytearray(size))

    def read() -> None:
        with weights.open("rb", buffering=0) as file:
            file.readinto(buffer)

    reader = AdapterReader(base.sites, dtype, _RANK)
    adapter = reader.read(folder, "stages")
    pool = RankPagePool(base.sites, 1, dtype, setting.device)
    rows = [
        _row("floor: one thread reads the file", size, _times(read)),
        _row("read, hashed and checked", size, _times(lambda: reader.read(folder, "stages"))),
    ]
    if setting.device.type == "cuda":
        locked = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        there = torch.empty(size, dtype=torch.uint8, device=setting.device)

        def copy() -> None:
            there.copy_(locked, non_blocking=True)
            setting.synchronize()

        rows.append(_row("floor: a page-locked copy to the device", size, _times(copy)))
    packed = _times(lambda: pool.write([0], adapter.weights))
    return [*rows, _row("copied and packed", size, packed)]


def _loads(setting: Setting, folders: list[Path], count: int) -> list[Row]:
    """From the request for an adapter to pages that a pass may use."""
    size = (folders[0] / "adapter_model.safetensors").stat().st_size
    reader = AdapterReader(setting.base.sites, setting.dtype, _RANK)
    pool = RankPagePool(setting.base.sites, len(folders), setting.dtype, setting.device)
    wake = threading.Event()
    manager = AdapterManager(
        lambda source: reader.read(Path(source.location), source.adapter_id),
        pool, len(folders) * size, wake.set,
    )  # fmt: skip

    def load(some: list[Path]) -> float:
        start = time.perf_counter()
        waiting = {folder.name for folder in some}
        for folder in some:
            manager.prefetch(AdapterSource(folder.name, str(folder)))
        while waiting:
            manager.poll()
            found = {name: manager.acquire(AdapterSet.of(name)) for name in waiting}
            waiting = {name for name in waiting if not isinstance(found[name], AdapterSet)}
            wake.wait(0.1 if waiting else 0)
            wake.clear()
        return time.perf_counter() - start

    try:
        alone = [load([folder]) for folder in folders[count:]]
        together = load(folders[:count])
    finally:
        manager.close()
    return [
        _row("one cold adapter", size, alone),
        _row(f"{count} cold adapters at once", count * size, [together]),
    ]


def _row(what: str, num_bytes: int, seconds: Iterable[float]) -> Row:
    return {"what": what, "bytes": num_bytes, "ms": statistics.median(seconds) * 1e3}


def _times(work: Callable[[], object]) -> list[float]:
    taken: list[float] = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def _write_adapters(folder: Path, setting: Setting, count: int) -> list[Path]:
    """Folders that share few files by hard links: each is an adapter of its own."""
    names = sorted({part.short_name for site in setting.base.sites for part in site.slices})
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 2 * _RANK, "target_modules": names}
    folders: list[Path] = []
    for index in range(count):
        made = folder / f"a{index}"
        made.mkdir()
        (made / "adapter_config.json").write_text(json.dumps(config))
        target = made / "adapter_model.safetensors"
        if index < _FILES:
            target.write_bytes(_weights(setting, index))
        else:
            os.link(folders[index % _FILES] / target.name, target)
        folders.append(made)
    time.sleep(_QUIET_SECONDS)
    return folders


def _weights(setting: Setting, seed: int) -> bytes:
    """A safetensors file of small random numbers."""
    noise = torch.Generator().manual_seed(seed)
    entries: dict[str, object] = {}
    numbers: list[bytes] = []
    end = 0
    for path, (site, part) in modules(setting.base.sites).items():
        shapes = {"A": (_RANK, site.in_features), "B": (part.out_features, _RANK)}
        for half, shape in shapes.items():
            tensor = torch.rand(shape, generator=noise).sub_(0.5).mul_(0.02).to(torch.float16)
            start, end = end, end + tensor.nbytes
            numbers.append(tensor.numpy().tobytes())
            name = f"base_model.model.{path}.lora_{half}.weight"
            entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *numbers])
