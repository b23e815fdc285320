"""Kernel timings of the LoRA of one layer: alone, and as what it adds to the base model's layer."""

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.statistics import median
from benchmarks.gpu.clock import Run, Timing, one_line
from benchmarks.gpu.contenders import AddLoRA, Contender, Own, contenders, forget, peer_objects
from benchmarks.gpu.data import LoRAData, error_of, expected, layers_needed, make_lora_data
from benchmarks.gpu.layer import (
    BASE,
    BaseLayers,
    base_layers,
    layer_runs,
    random_matrices,
    run_with_own_base,
)
from benchmarks.gpu.setting import Record, Row, Setting
from benchmarks.gpu.shapes import GROUPS, MIXES, RANKS, Mix, lora_bytes, lora_footprint

TOLERANCE = 0.02  # of the largest value
_DECODE = (32, 1, 64, 8, 128, 256)  # rows, what matters most first
_PREFILL = (8, 256)  # requests, rows of each
_SECONDS = 0.4  # of replays in a cell
_MICRO = 1e6
_MATRICES = 2  # layers of base matrices: one is larger than any cache
_OWN_BASE = "sglang_v2"


def cells(tiny: bool) -> list[tuple[int, int, str, str]]:
    """(requests, rows of each, mix, ranks), most important first."""
    if tiny:
        return [(3, 1, "skewed", "mixed"), (2, 18, "distinct", "16")]
    found: list[tuple[int, int, str, str]] = []
    for rank, requests, mix in itertools.product(("16", "64", "8", "mixed"), _DECODE, MIXES):
        if requests > 1 or mix == MIXES[0]:
            found.append((requests, 1, mix, rank))
    found += [(*_PREFILL, mix, rank) for rank in ("16", "64") for mix in MIXES]
    # Rank 16 is what the targets speak of; its prefill goes before the other ranks.
    return sorted(found, key=lambda cell: cell[3] != "16")


def measure(setting: Setting, record: Record) -> None:
    found = contenders(setting.peers)
    matrices = random_matrices(setting.base, _MATRICES, setting.dtype, setting.device)
    for requests, rows, mix_name, rank in cells(setting.tiny):
        mix = Mix.of(mix_name, requests, rows, RANKS[rank])
        name = f"lora T={mix.num_rows} {mix_name} r={rank}"

        def cell(mix: Mix = mix, mix_name: str = mix_name, rank: str = rank) -> Row:
            layers = base_layers(setting.base, matrices, mix.num_rows)
            bandwidth = record.facts["bandwidth"]
            row = {"rows": mix.num_rows, "mix": mix_name, "rank": rank}
            return row | _cell(setting, mix, found, layers, bandwidth)

        record.cell(name, cell)
        setting.clean()
        forget(setting.peers)


def _cell(
    setting: Setting,
    mix: Mix,
    found: dict[str, Contender],
    layers: BaseLayers,
    bandwidth: float,
) -> Row:
    itemsize = setting.dtype.itemsize
    num_bytes = lora_bytes(setting.base, mix, itemsize)
    num_layers = layers_needed(lora_footprint(setting.base, mix, itemsize), setting.cache_bytes)
    data = make_lora_data(setting.base, mix, num_layers, setting.dtype, setting.device)
    ready, problems = right_ones(found, data)
    own_base: dict[str, Run] = {}
    # Checked before anything is timed: with many updates added to y one more would not be missed.
    if setting.device.type == "cuda" and setting.peers and _OWN_BASE in ready:
        own_base = _own_base(setting.peers, layers, data, problems)
    alone: dict[str, Run] = {name: _all_layers(own, data) for name, own in ready.items()}
    timing = setting.clock.measure(alone, _SECONDS)
    others = {name: own for name, own in ready.items() if name != "ours"}
    whole = setting.clock.measure(layer_runs(layers, data, others) | own_base, _SECONDS)
    problems |= timing.problems | {f"layer: {k}": v for k, v in whole.problems.items()}
    return {
        "adapters": mix.num_adapters,
        "layers": num_layers,
        "floor_us": num_bytes / bandwidth * _MICRO,
        "us": _per_layer(timing, num_layers),
        "spread": _spread(timing),
        "layer_us": _per_layer(whole, num_layers),
        "added_us": _added(whole, num_layers),
        "problems": problems,
    }


def _own_base(
    peers: Path, layers: BaseLayers, data: LoRAData, problems: dict[str, str]
) -> dict[str, Run]:
    """SGLang v2 as it is meant to be used, if it is right."""
    name = f"{_OWN_BASE} own base"
    objects = peer_objects(_OWN_BASE, peers, data)

    def add(peer: Any) -> AddLoRA:
        return lambda x, y: peer.run_with_base(x, lambda: y)

    own = {key: add(peer) for key, peer in objects.items()}
    ready, wrong = right_ones({name: lambda _: own}, data)
    problems |= wrong
    return {name: partial(run_with_own_base, layers, data, objects)} if ready else {}


def right_ones(
    found: dict[str, Contender], data: LoRAData
) -> tuple[dict[str, Own], dict[str, str]]:
    """Those that compute the right thing on the first and the last layer; why the others do not."""
    keys = {(layer, group) for layer in (0, len(data.layers) - 1) for group in GROUPS}
    right = {key: expected(data, *key) for key in keys}
    ready: dict[str, Own] = {}
    problems: dict[str, str] = {}
    for name, contender in found.items():
        try:
            own = contender(data)
            error = max(_error(own, data, key, right[key]) for key in keys)
        except Exception as failure:
            problems[name] = one_line(failure)
            continue
        if error < TOLERANCE:
            ready[name] = own
        else:
            problems[name] = f"wrong: error {error:.2g} of the largest value"
    return ready, problems


def _error(own: Own, data: LoRAData, key: tuple[int, str], right: torch.Tensor) -> float:
    group = data.layers[key[0]][key[1]]
    y = group.y.clone()
    own[key](group.x, y)
    return error_of(y, right)


def _all_layers(own: Own, data: LoRAData) -> Run:
    calls = [(own[key], data.layers[key[0]][key[1]]) for key in data.groups]

    def run() -> None:
        for add, group in calls:
            add(group.x, group.y)

    return run


def _per_layer(timing: Timing, num_layers: int) -> dict[str, float]:
    return {name: value / num_layers * _MICRO for name, value in timing.medians().items()}


def _spread(timing: Timing) -> dict[str, float]:
    """(worst - best) / median over the rounds."""
    return {
        name: (max(values) - min(values)) / median(values)
        for name, values in timing.samples.items()
    }


def _added(timing: Timing, num_layers: int) -> dict[str, float]:
    """Microseconds of a layer beyond those of the base model: medians of pairs of one round."""
    base = timing.samples.get(BASE, [])
    added: dict[str, Any] = {}
    for name, values in timing.samples.items():
        if name != BASE:
            pairs = [value - own for value, own in zip(values, base, strict=True)]
            added[name] = median(pairs) / num_layers * _MICRO if pairs else math.nan
    return added
