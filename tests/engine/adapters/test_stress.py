"""Everything at once: requests, aborts, commands and changing folders, in a pool too small for all.

Each adapter content is written once and never again, so whatever a request answers tells which
version it ran on, from its first token to its last.
"""

import os
import queue
import random
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from multilora.adapters.admin.command import AdminCommand
from multilora.adapters.memory.device_cache import DeviceAdapterCache, adapter_id_of
from multilora.adapters.memory.host_cache import HostAdapterCache
from multilora.adapters.naming.watch import FolderChanges
from multilora.base_model.config import NativeConfig
from multilora.base_model.sites import LoRASite
from multilora.engine import Engine
from multilora.errors import ErrorCode, RequestError
from multilora.forward.base_model import KVCache
from multilora.lora.rank_pages import RankPagePool
from multilora.request import FinishReason, Request, TokenOutput
from support.engine.requests import MakeEngine, alone, assert_all_free, page_bytes, request, tokens
from support.tiny.base import write_adapter

NAMES = [f"team/x{number}" for number in range(24)]
RANKS = (4, 8, 16, 24, 40, 64)
PROMPTS = ("p", "q", "r")
DISTURBANCES = {
    "load": 5, "unload": 4, "cancel": 3, "pin": 4, "unpin": 4, "list": 2,
    "replace": 6, "remove": 3, "break": 3, "abort": 8,
}  # fmt: skip


@dataclass
class Asked:
    request: Request
    prompt: str
    length: int
    aborted: bool = False


class Storm:
    """A seeded random client, administrator and file system of one engine."""

    def __init__(self, engine: Engine, root: Path, seed: int) -> None:
        self.engine = engine
        self.root = root
        self.random = random.Random(seed)
        self.seed = 1000 * seed
        self.contents: dict[str, list[tuple[int, int]]] = {name: [] for name in NAMES}
        self.asked: dict[str, Asked] = {}
        self.outputs: dict[str, list[TokenOutput]] = {}
        self.running: set[str] = set()
        self.commands: list[Future[Any]] = []
        for name in NAMES:
            self.write(name)

    def write(self, name: str) -> None:
        """New files in place of what is there, in one move."""
        self.seed += 1
        rank = self.random.choice(RANKS)
        self.contents[name].append((self.seed, rank))
        fresh = write_adapter(self.root.parent / f"fresh{self.seed}", self.seed, rank)
        self.remove(name)
        (self.root / name).parent.mkdir(exist_ok=True)
        os.rename(fresh, self.root / name)

    def remove(self, name: str) -> None:
        if (self.root / name).exists():
            gone = self.root.parent / f"gone{self.seed}"
            os.rename(self.root / name, gone)
            shutil.rmtree(gone)

    def submit(self) -> None:
        number, prompt = len(self.asked), self.random.choice(PROMPTS)
        length = self.random.choice((2, 6, 20))
        adapter = self.random.choice(["", *NAMES, *NAMES[:6]])
        one = request(f"{prompt}{number}", adapter, length=20, max_tokens=length)
        try:
            self.engine.submit(one)
        except RequestError as error:
            assert error.code is ErrorCode.NOT_FOUND, error
            assert not (self.root / adapter).exists()
            return
        self.asked[one.request_id] = Asked(one, prompt, length)
        self.running.add(one.request_id)

    def disturb(self) -> None:
        kinds, weights = list(DISTURBANCES), list(DISTURBANCES.values())
        kind, name = self.random.choices(kinds, weights)[0], self.random.choice(NAMES)
        if kind == "abort":
            if self.running:
                victim = self.random.choice(sorted(self.running))
                self.asked[victim].aborted = True
                self.engine.abort(victim)
        elif kind in ("replace", "remove", "break"):
            self.change_folder(kind, name)
        elif kind == "list":
            self.command(AdminCommand("list"))
        else:
            action, cancel = ("unload", True) if kind == "cancel" else (kind, False)
            self.command(AdminCommand(action, name, cancel=cancel, timeout=30))

    def change_folder(self, kind: str, name: str) -> None:
        changes = FolderChanges((), (name,), ())
        if kind == "replace":
            self.write(name)
        elif kind == "remove":
            self.remove(name)
            changes = FolderChanges((), (), (name,))
        elif (self.root / name).exists():
            (self.root / name / "adapter_model.safetensors").write_bytes(b"rubbish")
        if self.random.random() < 0.7:  # else the watch finds it
            self.engine.admin.folders_changed(changes)

    def command(self, command: AdminCommand) -> None:
        try:
            self.commands.append(self.engine.admin.execute(command, 30))
        except RequestError as error:
            assert error.code is ErrorCode.NOT_FOUND, error

    def take(self, seconds: float) -> None:
        """Outputs until `seconds` have passed, or nothing runs any more."""
        deadline = time.monotonic() + seconds
        while self.running and (left := deadline - time.monotonic()) > 0:
            try:
                batch = self.engine.outputs.get(timeout=left)
            except queue.Empty:
                return
            assert batch is not None
            for output in batch:
                assert output.request_id in self.running, "said something after its last word"
                self.outputs.setdefault(output.request_id, []).append(output)
                if output.finish_reason:
                    self.running.remove(output.request_id)

    def blow(self, steps: int) -> None:
        for _ in range(steps):
            for _ in range(self.random.randint(0, 3)):
                self.submit()
            if self.random.random() < 0.5:
                self.disturb()
            self.take(self.random.choice((0.0, 0.002, 0.02)))
        self.take(20)
        assert not self.running, {name: self.asked[name] for name in self.running}
        for command in self.commands:
            error = command.exception(10)
            assert error is None or isinstance(error, RequestError), error
            assert error is None or error.code is not ErrorCode.INTERNAL, error


@pytest.mark.parametrize("seed", range(2))
def test_a_storm_of_requests_commands_and_files(
    make_engine: MakeEngine, folder: Path, tmp_path: Path, seed: int
):
    (tmp_path / "adapters").mkdir()
    size = page_bytes(folder)
    block = KVCache.bytes_per_block(NativeConfig.from_folder(folder / "base"), 16, torch.float32)
    engine = make_engine(
        {"a": folder / "a"},
        adapters_dir=str(tmp_path / "adapters"),
        adapter_memory=6 * size,
        adapter_host_memory=8 * size,
        max_running_requests=6,
        kv_cache_memory=7 * block,
        max_total_tokens=64,
        max_concurrent_requests=10_000,
    )
    storm = Storm(engine, tmp_path / "adapters", seed)
    storm.blow(steps=150)
    assert_all_free(engine)
    assert_settled(engine)
    sites = engine.base.sites
    assert_consistent(engine._parts.adapters.device, engine._parts.adapters.host, sites)
    assert_answers_are_of_one_version(storm, make_engine, tmp_path / "all")


def assert_settled(engine: Engine) -> None:
    """Nothing is under way, and the tiers hold versions in use alone."""
    manager, admin = engine._parts.adapters, engine.admin
    deadline = time.monotonic() + 10
    while manager.loading or manager.device.is_copying or len(admin.pending):
        assert time.monotonic() < deadline, (manager.loading, manager.device.is_copying)
        time.sleep(0.01)
    assert not engine._live
    in_use = {state.key for state in manager.states.values()}
    assert set(manager.device.allocator.resident) <= in_use
    for state in manager.states.values():
        assert not state.load_waiters and not state.unload_waiters and not state.pending
        adapter = manager.host.get(state.adapter_id)
        assert adapter is None or adapter.key == state.key


def assert_consistent(
    device: DeviceAdapterCache, host: HostAdapterCache, sites: Sequence[LoRASite]
) -> None:
    allocator = device.allocator
    pages = [page for key in allocator.resident for page in allocator.pages(key)]
    assert len(pages) == len(set(pages)) == allocator.num_pages - allocator.num_free
    assert allocator.num_references == 0
    assert allocator._idle_pages == len(pages)
    assert host.used_bytes == sum(adapter.host_bytes for adapter in host._adapters.values())
    for key in allocator.resident:
        adapter = host._adapters.get(adapter_id_of(key))
        if adapter is None:
            continue
        copy = RankPagePool(sites, adapter.num_pages, torch.float32, "cpu")
        copy.write(range(adapter.num_pages), adapter.weights)
        for name, a in copy.a.items():
            assert torch.equal(device.tensors.a[name][list(allocator.pages(key))], a), key


def assert_answers_are_of_one_version(storm: Storm, make_engine: MakeEngine, root: Path) -> None:
    root.mkdir()
    calm = make_engine(adapters_dir=str(root))
    known: dict[tuple[str, str], list[int]] = {}

    def answer(content: tuple[int, int] | None, prompt: str) -> list[int]:
        name = f"v{content[0]}" if content else ""
        if (name, prompt) not in known:
            if content:
                write_adapter(root / name, *content)
            one = request(prompt, name, length=20, max_tokens=20)
            known[name, prompt] = alone(calm, [one])[prompt]
        return known[name, prompt]

    complete = 0
    for request_id, asked in storm.asked.items():
        outputs = storm.outputs[request_id]
        assert [output for output in outputs if output.finish_reason] == outputs[-1:]
        error, got = outputs[-1].error, tokens(outputs)
        assert error is None or error.code is not ErrorCode.INTERNAL, error
        if outputs[-1].finish_reason is FinishReason.CANCELLED:
            assert asked.aborted
        contents = storm.contents.get(asked.request.adapter_id, [None])
        assert any(answer(content, asked.prompt)[: len(got)] == got for content in contents), asked
        if outputs[-1].finish_reason is FinishReason.LENGTH:
            assert len(got) == asked.length
            complete += 1
    assert complete > len(storm.asked) // 3
