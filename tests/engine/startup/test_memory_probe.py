"""The measuring of memory, on a CPU with a meter that makes up the numbers.

What a real GPU answers is for `make test-gpu`; here it is which passes are run, when what is read,
and that nothing of the trial stays.
"""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from multilora.base_model.config import NativeConfig
from multilora.base_model.sites import LoRASite, Slice
from multilora.config import EngineConfig
from multilora.engine import Engine
from multilora.errors import StartupError
from multilora.forward.base_model import KVCache
from multilora.forward.decoder import load_decoder
from multilora.forward.graphs import Bucket, PassGraphs, buckets
from multilora.forward.runner import InFlight, ModelRunner
from multilora.lora.rank_pages import RankPagePool, copy_bytes
from multilora.scheduling.batch import Batch
from multilora.startup import build
from multilora.startup.memory_probe import Profile, Reading, largest_batch, measure, pool_units

CPU = torch.device("cpu")
TOTAL, ELSEWHERE, WEIGHTS, POOLS, PEAK, WORKSPACE = 10**9, 7000, 50_000, 900, 300_000, 300
FIRST_GRAPH, NEXT_GRAPH = 4000, 600


class FakeMeter:
    """Knows what lives by the objects themselves, and what a real GPU would say of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pools: weakref.WeakSet[object] = weakref.WeakSet()
        self.graphs: weakref.WeakSet[PassGraphs] = weakref.WeakSet()
        self.captured: list[Bucket] = []
        self.pool_pages: list[int] = []  # that graphs have room for
        self.passes = 0
        self.peaks = [10**8]  # while the weights were loaded
        self.settled = False
        for kind in (KVCache, RankPagePool, PassGraphs):
            self._watch(monkeypatch, kind)
        real, capture = ModelRunner.launch, PassGraphs.capture

        def launch(runner: ModelRunner, batch: Batch) -> InFlight:
            self.passes, self.settled = self.passes + 1, False
            self.peaks.append(self._reserved() + PEAK)
            return real(runner, batch)

        def noted(graphs: PassGraphs, sizes: Any = None) -> None:
            self.pool_pages.append(graphs.state.pool_pages)
            self.captured += sizes or buckets(graphs.state.limits)
            self.settled = False
            capture(graphs, sizes)

        monkeypatch.setattr(ModelRunner, "launch", launch)
        monkeypatch.setattr(PassGraphs, "capture", noted)

    def settle(self) -> None:
        gc.collect()
        self.settled = True

    def reset(self) -> None:
        assert not self.passes, "the peak of the pass would be lost"
        self.peaks.clear()

    def read(self) -> Reading:
        assert self.settled or self.passes, "what is in use now is not known before settle()"
        reserved = self._reserved()
        private = len(set(self.captured)) if self.graphs else 0
        graphs = (private > 0) * FIRST_GRAPH + max(private - 1, 0) * NEXT_GRAPH
        free = TOTAL - ELSEWHERE - reserved - graphs
        return Reading(TOTAL, free, reserved, max(self.peaks, default=reserved))

    def _reserved(self) -> int:
        return WEIGHTS + POOLS * len(self.pools) + WORKSPACE * (self.passes > 0)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
        real, alive = kind.__init__, self.graphs if kind is PassGraphs else self.pools

        def init(made: Any, *arguments: Any) -> None:
            real(made, *arguments)
            alive.add(made)

        monkeypatch.setattr(kind, "__init__", init)


def make_profile(folder: Path, **settings: Any) -> Profile:
    values = {
        "max_running_requests": 6,
        "max_batch_prefill_tokens": 40,
        "max_lora_rank": 40,
        "gpu_memory_utilization": 0.8,
        **settings,
    }
    base = NativeConfig.from_folder(folder / "base")
    model = load_decoder(folder / "base", base, torch.float32, CPU)
    return Profile(model, EngineConfig(**values), 24, torch.float32, CPU)


def test_the_largest_batch_is_the_most_that_a_pass_may_hold(folder: Path):
    profile = make_profile(folder)
    batch = largest_batch(profile)
    assert len(batch.items) == batch.num_adapters == 6
    assert batch.num_tokens == 6 + 40
    assert [item.num_new_tokens for item in batch.items] == [24, 18, 1, 1, 1, 1]
    for item in batch.items:
        assert item.start == item.sequence.num_computed_tokens
        assert item.end == len(item.sequence.token_ids) == 24
    assert all(item.samples for item in batch.items)
    assert [len(item.scored) for item in batch.items] == [23, 17, 0, 0, 0, 0]
    assert {span.pages for span in batch.spans} == {(0, 1, 2)}


def test_a_budget_that_no_batch_can_use_up(folder: Path):
    batch = largest_batch(make_profile(folder, max_batch_prefill_tokens=10_000))
    assert [item.num_new_tokens for item in batch.items] == [24] * 6


def test_measure(folder: Path, monkeypatch: pytest.MonkeyPatch):
    meter = FakeMeter(monkeypatch)
    profile = make_profile(folder, max_running_requests=12)
    memory = measure(profile, meter)
    assert (memory.total, memory.utilization) == (TOTAL, 0.8)
    assert memory.weights == WEIGHTS
    assert memory.elsewhere == ELSEWHERE
    copy = copy_bytes(profile.model.base.sites, profile.units.pages_of_largest)
    assert memory.activations == PEAK + 2 * WORKSPACE + copy  # one for the thread of the engine
    # Mixed passes of 64 rows; 32 and 16, and decode passes of 12, 8, 4, 2 and 1.
    assert memory.graphs == FIRST_GRAPH + 7 * NEXT_GRAPH
    assert meter.passes == 1
    assert meter.captured == [Bucket(64, True), Bucket(32, True)]
    assert not meter.pools and not meter.graphs, "the trial must leave nothing"


def test_decode_alone_has_smaller_graphs(folder: Path, monkeypatch: pytest.MonkeyPatch):
    meter = FakeMeter(monkeypatch)
    profile = make_profile(folder, max_running_requests=12, cuda_graphs="decode")
    assert measure(profile, meter).graphs == FIRST_GRAPH + 4 * NEXT_GRAPH  # 12 rows; 8, 4, 2, 1
    assert meter.captured == [Bucket(12), Bucket(8)]


@pytest.mark.parametrize(
    ("running", "prefill", "rows"), [(12, 40, 52), (64, 2048, 512), (600, 16, 512)]
)
def test_mixed_passes_are_no_larger_than_the_scheduler_makes_them(
    running: int, prefill: int, rows: int, folder: Path
):
    settings = {"max_running_requests": running, "max_batch_prefill_tokens": prefill}
    assert make_profile(folder, **settings).graph_limits.mixed_rows == rows


def test_without_graphs_nothing_is_captured(folder: Path, monkeypatch: pytest.MonkeyPatch):
    meter = FakeMeter(monkeypatch)
    assert measure(make_profile(folder, cuda_graphs="off"), meter).graphs == 0
    assert meter.passes == 1 and not meter.captured


def test_one_row_has_one_graph(folder: Path, monkeypatch: pytest.MonkeyPatch):
    meter = FakeMeter(monkeypatch)
    profile = make_profile(folder, max_running_requests=1, cuda_graphs="decode")
    assert measure(profile, meter).graphs == FIRST_GRAPH


def test_the_copy_of_an_adapter_has_room(folder: Path, monkeypatch: pytest.MonkeyPatch):
    profile = make_profile(folder, max_lora_rank=128)
    copy = copy_bytes(profile.model.base.sites, 8)
    assert measure(profile, FakeMeter(monkeypatch)).activations == PEAK + 2 * WORKSPACE + copy
    wide = LoRASite("wide", 0, 8, (Slice("m", 1 << 14), Slice("n", 8)))
    assert copy_bytes([wide], 8) - copy_bytes([wide], 1) == 128 * (1 << 14) * 4


def test_units_are_those_of_the_pools(folder: Path):
    profile = make_profile(folder)
    units = pool_units(profile.config, profile.model.base, 24, torch.bfloat16)
    assert (units.block_tokens, units.least_blocks, units.pages_of_largest) == (16, 2, 3)
    kv = KVCache(profile.model.base, 5, 16, torch.bfloat16, CPU)
    assert units.block_bytes * 5 == kv.k.nbytes + kv.v.nbytes
    pages = RankPagePool(profile.model.base.sites, 3, torch.bfloat16, CPU)
    assert units.page_bytes * 3 == pages.nbytes


@pytest.mark.parametrize("broken", [ModelRunner, PassGraphs])
def test_a_gpu_too_small_for_the_trial(broken: type, folder: Path, monkeypatch: pytest.MonkeyPatch):
    meter = FakeMeter(monkeypatch)

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    monkeypatch.setattr(broken, "launch" if broken is ModelRunner else "capture", fail)
    with pytest.raises(StartupError, match="do not hold one forward pass") as caught:
        measure(make_profile(folder), meter)
    assert "Tried to allocate 2.00 GiB" in str(caught.value)
    assert "lower --max-batch-prefill-tokens" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_engine_plans_with_what_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """load_parts as on a GPU, but on the CPU: trial, plan, log, then pools of the planned size."""
    meter = FakeMeter(monkeypatch)
    monkeypatch.setattr(build, "_meter", lambda device: meter)
    caplog.set_level("INFO")
    config = EngineConfig(
        model_id=str(folder / "base"), lora_adapters=f"a={folder / 'a'}", dtype="float32",
        device="cpu", threads=1, max_running_requests=4, max_batch_prefill_tokens=64,
        gpu_memory_utilization=0.03, quantize="int8",
    )  # fmt: skip
    engine = Engine(config)
    try:
        parts = engine._parts
        kv, pages, graphs = parts.runner.kv, parts.runner.adapters, parts.runner.graphs
        units = pool_units(config, parts.base, parts.max_total_tokens, torch.float32)
        passes = PEAK + 2 * WORKSPACE + copy_bytes(parts.base.sites, 8)
        graph_bytes = FIRST_GRAPH + 6 * NEXT_GRAPH  # 96, 64, 32, 16; 4, 2, 1
        used = ELSEWHERE + WEIGHTS + passes + graph_bytes
        left = TOTAL * 3 // 100 - used
        adapters = max(left // 5, 8 * units.page_bytes)
        assert pages.num_pages == adapters // units.page_bytes
        assert kv.num_blocks == (left - adapters) // units.block_bytes
        assert graphs is not None and meter.captured[-1] == Bucket(96, mixed=True)
        *trial, real = meter.pool_pages
        assert min(trial) >= real == pages.num_pages, "the trial must not be the smaller one"
        assert set(meter.pools) == {kv, pages} and set(meter.graphs) == {graphs}
        said = [r.getMessage() for r in caplog.records if r.name == "multilora.memory"]
        assert said[0] == (
            "LlamaForCausalLM in float32, computed by this server's decoder; adapters can act on "
            "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
        )
        assert said[1].startswith("linear layers, quantised with int8: 8 of 8 as int8; ")
        assert "953.7 MiB" in said[2] and len(said) == 10
        assert f"{kv.num_blocks * 16} tokens" in said[8]
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nMore"), "(CUDA out of memory.); lower"),
        (MemoryError(), "(out of memory); lower --kv-cache-memory or --adapter-memory"),
    ],
)
def test_pools_that_cannot_be_made(
    error: Exception, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(build, "RankPagePool", fail)
    with pytest.raises(StartupError, match="KV cache and adapter pool do not fit on cpu") as caught:
        Engine(EngineConfig(model_id=str(folder / "base"), device="cpu"))
    assert words in str(caught.value) and "\n" not in str(caught.value)
