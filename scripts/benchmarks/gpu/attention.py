"""Kernel timings of paged attention, beside PyTorch's flash attention and other projects' kernels.

PyTorch reads K and V unpaged, [sequence, head, token, head_dim]: it does less than the others.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.clock import Run, one_line
from benchmarks.gpu.contenders import connect
from benchmarks.gpu.data import error_of, layers_needed
from benchmarks.gpu.setting import Record, Row, Setting
from multilora.base_model.config import NativeConfig
from multilora_kernels.paged_attention import paged_attention
from multilora_kernels.paged_prefill import QueryTiles
from multilora_kernels.unpaged_prefill import takes_rows

TOLERANCE = 0.02
_BLOCK_SIZE = 16
_SECONDS = 0.3
_MICRO = 1e6
_MOST_LAYERS = 40
_OTHERS = {"vllm": False, "sglang_decode": True}  # name → decode only


@dataclass(frozen=True, eq=False)
class Paged:
    """S sequences with `new` tokens each and a context of `context` tokens, the new included."""

    q: torch.Tensor  # [S * new, heads, head_dim]
    k: torch.Tensor  # [blocks, block_size, kv_heads, head_dim]
    v: torch.Tensor
    tables: torch.Tensor  # int32 [S, blocks of a sequence]
    sequences: int
    new: int
    context: int

    @property
    def scale(self) -> float:
        return self.q.shape[2] ** -0.5


def cells(tiny: bool) -> list[tuple[int, int, int]]:
    """(sequences, new tokens, context)"""
    if tiny:
        return [(2, 1, 33), (1, 20, 20), (1, 5, 37)]
    decode = [(s, 1, n) for n, s in itertools.product((2048, 8192, 512, 32768), (32, 1, 64, 8))]
    prefill = [(1, n, n) for n in (2048, 512, 8192)] + [(4, 512, 512), (1, 512, 8192)]
    return decode[:4] + prefill + decode[4:]


def measure(setting: Setting, record: Record) -> None:
    for sequences, new, context in cells(setting.tiny):
        shape = (sequences, new, context)
        name = f"attention {sequences} x {new} new of {context}"
        bandwidth = record.facts["bandwidth"]
        record.cell(name, partial(_cell, setting, *shape, bandwidth))
        setting.clean()


def _cell(setting: Setting, sequences: int, new: int, context: int, bandwidth: float) -> Row:
    base, itemsize = setting.base, setting.dtype.itemsize
    kv_bytes = 2 * sequences * context * base.num_kv_heads * base.head_dim * itemsize
    layers = min(layers_needed(kv_bytes, setting.cache_bytes), _MOST_LAYERS)
    torch.manual_seed(0)
    data = [_paged(setting, sequences, new, context) for _ in range(layers)]
    runs: dict[str, Run] = {}
    problems: dict[str, str] = {}
    right = _right(data[0])
    for name, make in _contenders(setting.peers, new).items():
        try:
            calls = [make(own) for own in data]
            error = error_of(calls[0]()[: len(right)], right)
        except Exception as failure:
            problems[name] = one_line(failure)
            continue
        if error < TOLERANCE:
            runs[name] = lambda calls=calls: [call() for call in calls]
        else:
            problems[name] = f"wrong: error {error:.2g} of the largest value"
    timing = setting.clock.measure(runs, _SECONDS)
    io_bytes = kv_bytes + 2 * data[0].q.nbytes
    return {
        "sequences": sequences,
        "new": new,
        "context": context,
        "layers": layers,
        "floor_us": io_bytes / bandwidth * _MICRO,
        "gflop": _operations(base, sequences, new, context) / 1e9,
        "us": {name: value / layers * _MICRO for name, value in timing.medians().items()},
        "problems": problems | timing.problems,
    }


def _operations(base: NativeConfig, sequences: int, new: int, context: int) -> float:
    """Two products over the pairs of query and key that the causal mask leaves."""
    pairs = new * context - new * (new - 1) / 2
    return 4.0 * sequences * base.num_heads * base.head_dim * pairs


def _paged(setting: Setting, sequences: int, new: int, context: int) -> Paged:
    base, device = setting.base, setting.device
    per_sequence = -(-context // _BLOCK_SIZE)
    blocks = sequences * per_sequence
    shape = (blocks, _BLOCK_SIZE, base.num_kv_heads, base.head_dim)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=setting.dtype, device=device)

    return Paged(
        q=noise(sequences * new, base.num_heads, base.head_dim),
        k=noise(*shape),
        v=noise(*shape),
        tables=torch.randperm(blocks, device=device).int().view(sequences, per_sequence),
        sequences=sequences,
        new=new,
        context=context,
    )


def _right(data: Paged) -> torch.Tensor:
    """The first sequence, float64 [new, heads, head_dim]; a head at a time: prefill is large."""
    numbers = data.tables[0].long()
    k, v = (cache[numbers].flatten(0, 1)[: data.context] for cache in (data.k, data.v))
    group = data.q.shape[1] // k.shape[1]
    visible = torch.ones(data.new, data.context, dtype=torch.bool, device=k.device)
    hidden = ~visible.tril(data.context - data.new)
    out = torch.empty(data.new, *data.q.shape[1:], dtype=torch.float64, device=k.device)
    for head in range(data.q.shape[1]):
        scores = data.q[: data.new, head].double() @ k[:, head // group].double().T * data.scale
        weights = scores.masked_fill_(hidden, -torch.inf).softmax(-1)
        out[:, head] = weights @ v[:, head // group].double()
    return out


Call = Callable[[], torch.Tensor]


def _contenders(peers: Path | None, new: int) -> dict[str, Callable[[Paged], Call]]:
    """Ours and PyTorch's, then those of the peers' kit that can do it."""
    found: dict[str, Callable[[Paged], Call]] = {"ours": _ours, "torch": _torch}
    if peers is not None:
        kinds = connect(peers, "peers_attention").ATTENTION
        for name, decode_only in _OTHERS.items():
            if name in kinds and (new == 1 or not decode_only):
                found[name] = lambda data, kind=kinds[name]: _peer(kind, data)
    return found


def _ours(data: Paged) -> Call:
    device = data.q.device
    starts = torch.arange(data.sequences + 1, device=device, dtype=torch.int32) * data.new
    contexts = torch.full((data.sequences,), data.context, dtype=torch.int32, device=device)
    new, seen = ([count] * data.sequences for count in (data.new, data.context))
    tiles = QueryTiles.of(new, seen, data.q.shape[1], data.k)
    rows = None
    if data.new == data.context > 1 and takes_rows(data.q, data.q.shape[2], None):
        own = torch.cat([_unpaged(cache, data) for cache in (data.k, data.v)], 1)
        both = own.transpose(1, 2).flatten(0, 1)  # side by side, as rope_kv_write leaves them
        rows = both[:, : data.k.shape[2]], both[:, data.k.shape[2] :]
    return lambda: paged_attention(
        data.q,
        data.k,
        data.v,
        starts,
        contexts,
        data.tables,
        scale=data.scale,
        has_decode=data.new == 1,
        tiles=tiles,
        rows=rows,
    )


def _torch(data: Paged) -> Call:
    """is_causal would align the mask with the first key, so a part of a prompt needs a mask."""
    k, v = (_unpaged(cache, data) for cache in (data.k, data.v))
    q = data.q.view(data.sequences, data.new, *data.q.shape[1:]).transpose(1, 2)
    causal, mask = data.new == data.context, None
    if not causal and data.new > 1:
        mask = torch.ones(data.new, data.context, dtype=torch.bool, device=q.device)
        mask = mask.tril(data.context - data.new)

    def call() -> torch.Tensor:
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    return call


def _unpaged(cache: torch.Tensor, data: Paged) -> torch.Tensor:
    """[S, kv_heads, context, head_dim] contiguous"""
    tokens = cache[data.tables.long()].flatten(1, 2)[:, : data.context]
    return tokens.transpose(1, 2).contiguous()


def _peer(kind: Any, data: Paged) -> Call:
    new, contexts = [data.new] * data.sequences, [data.context] * data.sequences
    return kind(data.q, data.k, data.v, data.tables, new, contexts).run
