"""Where and for how long one section of the GPU benchmark runs, and what it writes down."""

import gc
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.clock import GraphClock, HostClock, one_line
from benchmarks.gpu.shapes import LLAMA_8B, TINY
from multilora.base_model.config import NativeConfig

Row = dict[str, Any]  # flat enough for JSON
_RECENT = 4  # the last cells count: older ones may have had more to compile
_ROOM = 1.3  # the next cell may take so many times as long as the longest recent one


class OutOfTime(BaseException):
    """Raised by an alarm, wherever a section is; no contender may take it for its own failure."""


@dataclass(frozen=True)
class Setting:
    """`seconds` are for the whole section. `peers` is the folder with peers_api.py, if any."""

    device: torch.device
    tiny: bool
    seconds: float
    peers: Path | None

    @property
    def base(self) -> NativeConfig:
        return TINY if self.tiny else LLAMA_8B

    @property
    def dtype(self) -> torch.dtype:
        """OpenAI Triton's interpreter cannot multiply bfloat16."""
        return torch.float16 if self.tiny else torch.bfloat16

    @cached_property
    def clock(self) -> GraphClock | HostClock:
        return GraphClock(self.device) if self.device.type == "cuda" else HostClock()

    @property
    def cache_bytes(self) -> int:
        """The last cache before memory; 0 on a CPU, where nothing is measured."""
        if self.device.type != "cuda":
            return 0
        return torch.cuda.get_device_properties(self.device).L2_cache_size

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clean(self) -> None:
        """Between cells: free their memory. Raises when the device is lost: the section ends."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()


@dataclass
class Record:
    """What a section has measured; written after each cell, so that a crash loses one cell."""

    file: Path
    seconds: float
    began: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def cell(self, name: str, measure: Callable[[], Row | list[Row]]) -> None:
        """Measure one cell if there is time left for it; failures and skips are written down."""
        start = self.elapsed
        if start + max(self.recent, default=0) * _ROOM > self.seconds:
            self.skipped.append(name)
            self.write()
            return
        try:
            rows = measure()
        except OutOfTime:
            self.skipped.append(name)
        except Exception as error:
            self.notes.append(f"{name} failed: {one_line(error)}")
            print(f"{self.elapsed:5.0f} s  {self.notes[-1]}", flush=True)
        else:
            self.rows += rows if isinstance(rows, list) else [rows]
            print(f"{self.elapsed:5.0f} s  {name}", flush=True)
        self.recent.append(self.elapsed - start)
        self.write()

    def write(self) -> None:
        content = {"facts": self.facts, "rows": self.rows, "skipped": self.skipped,
                   "notes": self.notes, "seconds": round(self.elapsed, 1)}  # fmt: skip
        half = self.file.with_suffix(".half")  # the process may be killed at any time
        half.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        half.replace(self.file)
