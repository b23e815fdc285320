"""Clocks: how long launches take on the device, contenders in turn.

On a GPU each contender is captured in a CUDA graph, so that the host is not what is measured; a
graph should go over more memory than the last cache holds. On a CPU (OpenAI Triton's interpreter)
a plain clock stands in: its figures mean nothing, but the same code runs.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.common.statistics import median

Run = Callable[[], object]
_FEWEST, _MOST = 5, 30  # rounds
_HEAD_START = 2_000_000  # clock cycles that the device waits, so that the host is ahead of it


@dataclass(frozen=True)
class Timing:
    """Seconds of each contender, one per round; and why others could not be timed."""

    samples: dict[str, list[float]]
    problems: dict[str, str]

    def medians(self) -> dict[str, float]:
        return {name: median(values) for name, values in self.samples.items()}


class HostClock:
    """One round of plain calls."""

    def measure(self, runs: Mapping[str, Run], seconds: float) -> Timing:
        samples: dict[str, list[float]] = {}
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            samples[name] = [time.perf_counter() - start]
        return Timing(samples, {})


class GraphClock:
    """CUDA graphs, replayed in rounds; every second round goes backwards."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def measure(self, runs: Mapping[str, Run], seconds: float) -> Timing:
        """About `seconds` of replays in all. What cannot be captured is a problem of its own."""
        graphs: dict[str, torch.cuda.CUDAGraph] = {}
        problems: dict[str, str] = {}
        for name, run in runs.items():
            try:
                graphs[name] = self._capture(run)
            except Exception as error:
                torch.cuda.synchronize()  # raises if the device is lost
                problems[name] = f"not captured: {one_line(error)}"
        once = sum(values[0] for values in self._rounds(graphs, 1).values())
        rounds = min(max(round(seconds / max(once, 1e-6)), _FEWEST), _MOST)
        return Timing(self._rounds(graphs, rounds), problems)

    def _capture(self, run: Run) -> torch.cuda.CUDAGraph:
        """Not by torch.cuda.graph, which empties the allocator's cache each time."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()  # compiles, and builds what a capture may not
            torch.cuda.synchronize()
            graph.capture_begin(pool)
            failures: list[BaseException] = []
            for step in (run, graph.capture_end):
                try:
                    step()
                except BaseException as failure:
                    failures.append(failure)
            if failures:
                self._mend(pool)
                raise failures[0]  # of two the second only says that the capture is void
        graph.replay()
        torch.cuda.synchronize()
        return graph

    def _mend(self, pool: tuple[int, int]) -> None:
        """PyTorch before 2.12 takes a failed capture for one that goes on: the allocator frees
        nothing any more, and the random generator refuses to draw."""
        with contextlib.suppress(Exception):  # ended already
            torch._C._cuda_endAllocateToPool(self._device.index, pool)
        with contextlib.suppress(Exception):
            fresh = torch.Generator(self._device).graphsafe_get_state()
            torch.cuda.default_generators[self._device.index].graphsafe_set_state(fresh)

    def _rounds(
        self, graphs: Mapping[str, torch.cuda.CUDAGraph], rounds: int
    ) -> dict[str, list[float]]:
        events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in graphs}
        for index in range(rounds):
            torch.cuda._sleep(_HEAD_START)
            for name in list(graphs)[:: -1 if index % 2 else 1]:
                start, end = torch.cuda.Event(True), torch.cuda.Event(True)
                start.record()
                graphs[name].replay()
                end.record()
                events[name].append((start, end))
            torch.cuda.synchronize()
        return {
            name: [start.elapsed_time(end) / 1e3 for start, end in pairs]
            for name, pairs in events.items()
        }


def bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes per second of the better of one big read and one big copy (read + written)."""
    source = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    clock = GraphClock(device) if device.type == "cuda" else HostClock()
    runs: dict[str, Run] = {"read": source.sum, "copy": lambda: target.copy_(source)}
    seconds = clock.measure(runs, seconds=0.2).medians()
    return max(source.nbytes / seconds["read"], 2 * source.nbytes / seconds["copy"])


def one_line(error: BaseException) -> str:
    """Its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
