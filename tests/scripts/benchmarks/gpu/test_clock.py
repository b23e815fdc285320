"""GraphClock on a device that is played: who is captured, in which order replays go."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu.clock import GraphClock


class PlayedDevice:
    """Stands for torch.cuda. Its clock advances by what a captured run says, in milliseconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.capturing: PlayedGraph | None = None
        self.order: list[str] = []

    def run(self, name: str, milliseconds: float) -> None:
        if self.capturing is not None:
            self.capturing.work.append((name, milliseconds))
        else:
            self.now += milliseconds


class PlayedGraph:
    def __init__(self, device: PlayedDevice) -> None:
        self.device = device
        self.work: list[tuple[str, float]] = []
        self.void = False

    def capture_begin(self, pool: tuple[int, int]) -> None:
        self.device.capturing = self

    def capture_end(self) -> None:
        self.device.capturing = None
        if self.void:
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self) -> None:
        for name, milliseconds in self.work:
            self.device.order.append(name)
            self.device.now += milliseconds


class PlayedEvent:
    def __init__(self, device: PlayedDevice) -> None:
        self.device, self.time = device, 0.0

    def record(self) -> None:
        self.time = self.device.now

    def elapsed_time(self, end: "PlayedEvent") -> float:
        return end.time - self.time


class PlayedGenerator:
    state = "captured"

    def graphsafe_get_state(self) -> str:
        return "fresh"

    def graphsafe_set_state(self, state: str) -> None:
        self.state = state


class PlayedStream:
    def wait_stream(self, other: object) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> PlayedDevice:
    played = PlayedDevice()
    stand_ins: dict[str, Callable[..., object]] = {
        "Stream": lambda _: PlayedStream(),
        "stream": lambda stream: stream,
        "current_stream": SimpleNamespace,
        "synchronize": lambda: None,
        "graph_pool_handle": lambda: (0, 1),
        "CUDAGraph": lambda: PlayedGraph(played),
        "Event": lambda _: PlayedEvent(played),
        "_sleep": lambda _: None,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return played


def test_contenders_take_turns_and_every_second_round_goes_backwards(device: PlayedDevice) -> None:
    clock = GraphClock(torch.device("cuda"))
    runs = {name: lambda n=name, ms=ms: device.run(n, ms) for name, ms in (("a", 2), ("b", 3))}
    timing = clock.measure(runs, seconds=0.05)
    assert timing.problems == {}
    assert timing.samples == {"a": pytest.approx([0.002] * 10), "b": pytest.approx([0.003] * 10)}
    assert timing.medians() == {"a": pytest.approx(0.002), "b": pytest.approx(0.003)}
    warm = ["a", "b", "a", "b"]  # after each capture, and the round that says how many there are
    assert device.order == warm + ["a", "b", "b", "a"] * 5


def test_what_cannot_be_captured_is_told_and_the_others_are_timed(
    device: PlayedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits_for_the_device() -> None:
        if device.capturing is not None:
            device.capturing.void = True
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    generator = PlayedGenerator()
    ended: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    monkeypatch.setattr(torch, "Generator", lambda _: PlayedGenerator())
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *ids: ended.append(ids))
    clock = GraphClock(torch.device("cuda", 0))
    runs = {"waits": waits_for_the_device, "fine": lambda: device.run("fine", 1.0)}
    timing = clock.measure(runs, seconds=0.0)
    message = "not captured: RuntimeError: operation not permitted when stream is capturing"
    assert timing.problems == {"waits": message}
    assert timing.samples == {"fine": pytest.approx([0.001] * 5)}
    assert device.capturing is None
    assert ended == [(0, (0, 1))] and generator.state == "fresh"  # as PyTorch 2.11 needs it
