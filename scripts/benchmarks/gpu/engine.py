"""A model of the size of Llama-3-8B, served: tokens per second with and without adapters.

Scheduler, ModelRunner and CUDA graphs are the engine's own; weights are random. Cells of one batch
size take turns, so that a change of the card's clocks meets them all.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.common.statistics import median
from benchmarks.gpu.model import random_pages, random_weights
from benchmarks.gpu.setting import Record, Row, Setting
from benchmarks.gpu.shapes import decode_bytes
from benchmarks.gpu.traffic import PREFILL_TOKENS, Traffic
from multilora.forward.base_model import KVCache
from multilora.forward.decoder import Decoder
from multilora.forward.graphs import Bucket, GraphLimits, PassGraphs
from multilora.forward.runner import ModelRunner
from multilora.forward.step_input import build_step_input, step_arrays

TOLERANCE = 0.1  # graphs against plain launches, of the largest logit; both round to the dtype
_RANK = 16
_BLOCK_SIZE = 16
_MILLI = 1e3


@dataclass(frozen=True)
class EngineLoad:
    """`adapters` are numbers of adapters in a batch, as far as it has that many requests."""

    batches: tuple[int, ...]
    adapters: tuple[int, ...]
    prompt: int
    context: int  # what the graphs are captured for
    steps: int  # of each cell and round, beside those that fill the runner
    rounds: int
    prefill_batches: tuple[int, ...]  # a pass is PREFILL_TOKENS: a larger batch changes little
    prefill_passes: int
    mixed_batches: tuple[int, ...]  # decode rows beside which a prompt of `beside` tokens comes
    beside: int
    buckets: tuple[int, ...]  # rows of mixed passes that are captured

    def adapters_of(self, batch: int) -> list[int]:
        return sorted({min(batch, count) for count in self.adapters})


FULL = EngineLoad((32, 1, 64, 8, 256, 128), (0, 1, 32, 128), 512, 4096, 8, 3, (32, 1, 8), 3,
                  (32,), 64, (96, 512))  # fmt: skip
SMALL = EngineLoad((2,), (0, 32), 5, 64, 2, 1, (2,), 1, (2,), 4, (16,))


@dataclass(frozen=True, eq=False)
class Served:
    runner: ModelRunner
    graphs: PassGraphs
    load: EngineLoad
    bandwidth: float
    setting: Setting

    def traffic(self, batch: int, adapters: int, answer: int) -> Traffic:
        vocab_size = self.setting.base.vocab_size
        return Traffic(self.runner.kv, vocab_size, batch, adapters, self.load.prompt, answer)


def measure(setting: Setting, record: Record) -> None:
    load = SMALL if setting.tiny else FULL
    began = time.perf_counter()
    served = _serve(setting, load, record.facts["bandwidth"])
    record.facts["seconds_to_start"] = round(time.perf_counter() - began, 1)
    cells: list[tuple[str, Callable[[], list[Row]]]] = []
    for batch in load.batches:
        cells.append((f"decode {batch}", functools.partial(_decode, served, batch)))
    for batch in load.prefill_batches:
        cells.append((f"prefill {batch}", functools.partial(_prefill, served, batch)))
    for batch in load.mixed_batches:
        cells.append((f"mixed {batch}", functools.partial(_mixed, served, batch)))
    for name, cell in cells:
        record.cell(name, cell)
        setting.clean()


def _serve(setting: Setting, load: EngineLoad, bandwidth: float) -> Served:
    base, dtype, device = setting.base, setting.dtype, setting.device
    model = Decoder(base, random_weights(base, dtype, device), device)
    steps = _answer(load)
    blocks = max(load.batches) * -(-(load.prompt + steps) // _BLOCK_SIZE)
    blocks += load.beside // _BLOCK_SIZE + 1
    kv = KVCache(base, blocks, _BLOCK_SIZE, dtype, device)
    pages = random_pages(base, max(load.adapters), dtype, device)
    limits = GraphLimits(max(load.batches), load.context, 1, max(load.buckets))
    graphs = PassGraphs(model, kv, pages, limits, device)
    mixed = [Bucket(rows, mixed=True) for rows in load.buckets]
    graphs.capture([*map(Bucket, load.batches), *mixed])
    runner = ModelRunner(model, kv, pages, (1,), device, dtype, graphs)
    return Served(runner, graphs, load, bandwidth, setting)


def _answer(load: EngineLoad) -> int:
    """Tokens that a request of a decode cell can have."""
    return (load.steps + 2) * load.rounds + 8


def _decode(served: Served, batch: int) -> list[Row]:
    load = served.load
    counts = load.adapters_of(batch)
    all_traffic = [served.traffic(batch, count, _answer(load)) for count in counts]
    for traffic in all_traffic:
        traffic.skip_prefill()
    rows = [_probe(served, batch, traffic) for traffic in all_traffic]
    for _ in range(load.rounds):
        for traffic in all_traffic:
            traffic.warm_up(served.runner)
            for _ in range(load.steps):
                traffic.step(served.runner)
            traffic.drain()
    base_step = median(all_traffic[0].seconds.step)
    for row, traffic in zip(rows, all_traffic, strict=True):
        step = median(traffic.seconds.step)
        row |= {
            "step_ms": step * _MILLI,
            "tokens_per_second": batch / step,
            "of_base": base_step / step,
            "of_floor": row["floor_ms"] / (step * _MILLI),
            "schedule_ms": median(traffic.seconds.schedule) * _MILLI,
        }
    return rows


def _probe(served: Served, batch: int, traffic: Traffic) -> Row:
    """Floor, and for one pass: what the host takes to build it and the device to replay it."""
    setting, runner = served.setting, served.runner
    items = traffic.decode_batch()
    contexts = [item.end for item in items.items]
    ranks = [_RANK] * items.num_adapters
    num_bytes = decode_bytes(setting.base, contexts, ranks, setting.dtype.itemsize)
    build: list[float] = []
    replay: list[float] = []
    logits = torch.empty(0)
    with torch.inference_mode():
        for _ in range(1 if setting.tiny else 5):
            start = time.perf_counter()
            arrays = step_arrays(items, runner.kv.block_size)
            captured = served.graphs.find(arrays)
            if captured is None:
                raise RuntimeError(f"no graph for {batch} rows")
            staging, forward = captured.prepare(arrays)
            staging.send()
            build.append(time.perf_counter() - start)
            setting.synchronize()
            start = time.perf_counter()
            logits = forward()
            setting.synchronize()
            replay.append(time.perf_counter() - start)
        kv, dtype, device = runner.kv, setting.dtype, setting.device
        inputs = build_step_input(items, kv.block_size, device, dtype)
        plain = runner.model.forward(inputs, kv, runner.adapters)
    error = ((logits - plain).abs().max() / plain.abs().max()).item()
    traffic.drop(items)
    return {
        "what": "decode",
        "batch": batch,
        "adapters": traffic.adapters,
        "floor_ms": num_bytes / served.bandwidth * _MILLI,
        "build_ms": median(build) * _MILLI,
        "replay_ms": median(replay) * _MILLI,
        "problems": {} if error < TOLERANCE else {"graph": f"logits differ by {error:.2g}"},
        "logit_difference": error,
    }


def _prefill(served: Served, batch: int) -> list[Row]:
    """The first passes over the prompts, rounds in turn; the first round warms up."""
    load = served.load
    counts = load.adapters_of(batch)
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(load.rounds + 1):
        for count in counts:
            traffic = served.traffic(batch, count, 8)
            passes = -(-batch * load.prompt // PREFILL_TOKENS)
            start = time.perf_counter()
            for _ in range(min(passes, load.prefill_passes)):
                traffic.step(served.runner)
            traffic.drain()
            rates[count].append(sum(traffic.seconds.tokens) / (time.perf_counter() - start))
    rates = {count: values[1:] for count, values in rates.items()}
    base = median(rates[counts[0]])
    return [
        {
            "what": "prefill",
            "batch": batch,
            "adapters": count,
            "tokens_per_second": median(values),
            "of_base": median(values) / base,
        }
        for count, values in rates.items()
    ]


def _mixed(served: Served, batch: int) -> list[Row]:
    """Decode rows alone, and with a prompt that comes and ends with that pass, in turn."""
    load, rows = served.load, list[Row]()
    ahead = served.runner.depth - 1  # a step waits for what was launched so many steps before
    for count in (0, batch):
        traffic = served.traffic(batch, count, (load.steps + 1) * load.rounds + 8)
        traffic.skip_prefill()
        traffic.warm_up(served.runner)
        for _ in range(load.steps * load.rounds // 2 + ahead):
            traffic.step(served.runner)
            traffic.add_prompt(load.beside)
            traffic.step(served.runner)
        steps = traffic.seconds.step[ahead:]
        alone, beside = median(steps[::2]), median(steps[1::2])
        rows.append(
            {
                "what": "mixed",
                "batch": batch,
                "adapters": count,
                "prompt": load.beside,
                "decode_ms": alone * _MILLI,
                "mixed_ms": beside * _MILLI,
                "of_decode": beside / alone,
            }
        )
    return rows
