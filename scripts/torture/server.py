"""The server under test: scripts/serve.py as a process of its own, with small pools.

Unless it is roomy, its pools hold few adapters and little more than one long sequence, so that
eviction and preemption happen all the time.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from launcher.demo import SKILLS
from launcher.process import LaunchError
from launcher.repository import REPOSITORY
from launcher.triton.server import Ports
from torture.processes import existing, figures, shared_files, tree
from torture.speak import Address, Answer, call

ADMIN_KEY = "torture-admin"
MOST_REQUESTS = 32
_START_SECONDS = 120.0
_STOP_SECONDS = 75.0
_WATCH_SECONDS = 0.1
_LARGE_MB = 500.0  # what any process may take at its start
_FLAGS = (f"--max-concurrent-requests={MOST_REQUESTS}", "--threads=1", f"--admin-key={ADMIN_KEY}")
_SMALL = ("--kv-cache-memory=4MiB", "--adapter-memory=8MB", "--adapter-host-memory=16MB")
_ROOMY = ("--kv-cache-memory=256MiB", "--adapter-memory=64MB", "--adapter-host-memory=64MB")


class Example(NamedTuple):
    """A prompt and its exact answer. `adapter_id` "" is the base model."""

    adapter_id: str
    prompt: str
    answer: str


class ServerUnderTest:
    """`folder` is for its log and its adapters. `guard` is how many MB any of its processes may
    grow by: one that exceeds them is ended, for the sake of the machine, and `on_greed` told."""

    def __init__(self, folder: Path, guard: float, *, roomy: bool = False) -> None:
        self.adapters_dir = folder / "adapters"
        self.adapters_dir.mkdir()
        self.log = folder / "server.log"
        self.examples = [
            Example(skill["adapter_id"], example["prompt"], example["answer"])
            for skill in json.loads(SKILLS.read_text(encoding="utf-8"))
            for example in skill["examples"]
        ]
        # The demo's adapters.
        self.skills = sorted({each.adapter_id for each in self.examples if each.adapter_id})
        self.on_greed: Callable[[str], None] = print
        self.shared: set[str] = set()  # files in /dev/shm that its processes have ever mapped
        self._guard = guard
        self._flags = (*_FLAGS, *(_ROOMY if roomy else _SMALL))
        self._process: subprocess.Popen[bytes] | None = None
        triton, front = Ports().resolve(), Ports().resolve()
        self.gateway = Address("127.0.0.1", front.http)
        self.triton = Address("127.0.0.1", triton.http)
        self.metrics = Address("127.0.0.1", triton.metrics)
        self.grpc = f"127.0.0.1:{triton.grpc}"
        self._ports = [
            f"--port={front.http}", f"--http-port={triton.http}", f"--grpc-port={triton.grpc}",
            f"--metrics-port={triton.metrics}",
        ]  # fmt: skip
        threading.Thread(target=self._watch, daemon=True).start()

    def start(self) -> None:
        """Returns once it serves; raises LaunchError when it does not."""
        command = [sys.executable, str(REPOSITORY / "scripts/serve.py"), *self._flags, *self._ports]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, f"--adapters-dir={self.adapters_dir}"],
                env={**os.environ, "MODEL_ID": "", "LORA_ADAPTERS": ""},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if not self.wait_serving(_START_SECONDS):
            raise LaunchError("the server does not serve")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def processes(self) -> dict[int, str]:
        """Process id → name, of all that are alive."""
        return tree(self._process.pid) if self._process else {}

    def wait_serving(self, seconds: float) -> bool:
        """Whether it gives right answers, with and without an adapter, before the seconds are
        over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.is_running:
            if self._is_right(self.examples[0]) and self._is_right(self.examples[-1]):
                return True
            time.sleep(0.2)
        return False

    def ask(self, example: Example, adapter_id: str, seconds: float = 60.0) -> Answer:
        """The answer of POST /generate."""
        limits = {"adapter_id": adapter_id, "max_new_tokens": 200}
        body = {"inputs": example.prompt, "parameters": limits}
        return call(self.gateway, "POST", "/generate", body, seconds=seconds)

    def administer(self, action: str, **fields: object) -> Answer:
        """POST /adapters/ACTION with the administrator's key."""
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        return call(self.gateway, "POST", f"/adapters/{action}", fields, headers=headers)

    def place(self, name: str, skill: str, spoil: Callable[[Path], None] = lambda _: None) -> None:
        """Make, or replace, an adapter of the directory: a copy of one of the demo's, spoiled.

        It is moved there whole; for a moment there is none.
        """
        target, fresh = self.adapters_dir / name, self.adapters_dir.with_name("fresh") / name
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(SKILLS.parent / "adapters" / skill, fresh)
        spoil(fresh)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            old = fresh.with_name(fresh.name + "-old")
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        fresh.rename(target)

    def stop(self) -> list[str]:
        """End it; what was left over then: processes, and files in /dev/shm."""
        if self._process is None:
            return []
        processes = self.processes()
        left: list[str] = []
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            left.append(f"the launcher has not ended after {_STOP_SECONDS:.0f} s")
            self._process.kill()
            self._process.wait()
        time.sleep(0.5)
        for pid in filter(figures, processes):
            left.append(f"{processes[pid]} outlives the launcher")
            os.kill(pid, signal.SIGKILL)
        left += [f"/dev/shm/{name} is left" for name in existing(self.shared)]
        self.shared.clear()
        self._process = None
        return left

    def _is_right(self, example: Example) -> bool:
        try:
            answer = self.ask(example, example.adapter_id, seconds=5)
        except OSError:
            return False
        return answer.status == 200 and answer.json()["generated_text"] == example.answer

    def _watch(self) -> None:
        """Note which files of /dev/shm are the server's; end a process that takes all memory."""
        first: dict[int, float] = {}
        for turn in itertools.count():
            processes = self.processes()
            if turn % 20 == 0:
                self.shared |= shared_files(processes)
            for pid, name in processes.items():
                if now := figures(pid):
                    most = first.setdefault(pid, max(now.rss, _LARGE_MB)) + self._guard
                    if now.rss > most:
                        os.kill(pid, signal.SIGKILL)
                        self.on_greed(f"{name} grew to {now.rss:.0f} MB and was ended")
            time.sleep(_WATCH_SECONDS)
