"""CapturedPass: one decode pass of a fixed number of rows, captured once, replayed for any batch.

Its inputs lie at fixed places of a static buffer. A batch is padded to the captured size: padding
rows have no context, write no K and V, and belong to no adapter. Grids have the size of the bounds
and the kernels read the real counts on the device, so every mix of adapters replays rightly.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from multilora.forward.decoder import Llama
from multilora.forward.kv_cache import KVCache
from multilora.forward.staging import Upload, offsets, view
from multilora.forward.step_input import ForwardArrays, ForwardInput, batch_segments
from multilora.lora.adapter_pages import AdapterPages
from multilora.lora.plan import DEFAULT_PLAN, LoRAPlan
from multilora_kernels.row_groups import Segment
from multilora_kernels.segments import LaunchBounds, LoRASegments, segment_tables

Replay = Callable[[], object]


class GraphLimits(NamedTuple):
    """What captured passes must be able to hold."""

    rows: int  # sequences in one pass
    context: int  # tokens of one sequence
    pages_per_adapter: int


class DecodeState(NamedTuple):
    """What all captured passes share. `static` uint8, `logits` float32 [rows, vocab]."""

    model: Llama
    kv: KVCache
    adapters: AdapterPages
    limits: GraphLimits
    pool_pages: int  # that a batch may use
    static: torch.Tensor
    logits: torch.Tensor


class CapturedPass:
    """`with_lora` False: for batches of base rows only."""

    def __init__(self, state: DecodeState, rows: int, with_lora: bool) -> None:
        self.rows = rows
        self.with_lora = with_lora
        self._state = state
        self._bounds = lora_bounds(state.limits, rows, state.pool_pages) if with_lora else None
        self._max_blocks = blocks_of(state.limits, state.kv)
        self._inputs = self._static_inputs()
        self._replay: Replay | None = None

    def capture(self, capture: Callable[[Replay], Replay], plan: LoRAPlan = DEFAULT_PLAN) -> Replay:
        """Capture with a plan; what this returns replays it, and so does `prepare` from now on."""
        state, out = self._state, self._state.logits[: self.rows]
        self._load((), 0).send()
        self._replay = capture(
            lambda: state.model.forward(self._inputs, state.kv, state.adapters, plan, out)
        )
        return self._replay

    def load_trial(self) -> None:
        """As many adapters of one page as there are rows, or pages in the pool."""
        count = min(self.rows, self._state.adapters.num_pages)
        starts = [index * self.rows // count for index in range(count + 1)]
        segments = tuple(
            Segment(start, end - start, (page,))
            for page, (start, end) in enumerate(pairwise(starts))
        )
        self._load(segments, self.rows).send()

    def prepare(self, arrays: ForwardArrays) -> tuple[Upload, Callable[[], torch.Tensor]]:
        """An upload that holds the batch, and what runs it after that has been sent → logits."""
        replay, count = self._replay, arrays.num_rows
        if replay is None:
            raise RuntimeError("prepare before capture")
        upload = self._load(batch_segments(arrays.batch), count, arrays)

        def run() -> torch.Tensor:
            replay()
            return self._state.logits[:count]

        return upload, run

    def _load(
        self, segments: tuple[Segment, ...], count: int, arrays: ForwardArrays | None = None
    ) -> Upload:
        """`count` real rows; without `arrays` each sees one token, and writes none."""
        rows, upload = self.rows, Upload(self._state.static.device, self._state.static)
        ids, positions, slots = (np.zeros(rows, dtype=np.int64) for _ in range(3))
        contexts = np.zeros(rows, dtype=np.int32)
        tables = np.zeros((rows, self._max_blocks), dtype=np.int32)
        slots[:], contexts[:count] = -1, 1
        if arrays:
            ids[:count], positions[:count] = arrays.input_ids, arrays.positions
            slots[:count], contexts[:count] = arrays.kv_slots, arrays.context_lens
            tables[:count, : arrays.block_tables.shape[1]] = arrays.block_tables
        for array in (ids, positions, slots, contexts, tables):
            upload.add(array)
        if self._bounds:
            lora = segment_tables(segments, rows, self._bounds)
            for array in (lora.counts, lora.tiles, lora.pairs):
                upload.add(array)
        return upload

    def _static_inputs(self) -> ForwardInput:
        """Views of the places where Upload puts what _load adds."""
        shapes = input_shapes(self.rows, self._max_blocks, self._bounds)
        starts, _ = offsets([_nbytes(shape, dtype) for shape, dtype in shapes])
        static = self._state.static
        ids, positions, slots, contexts, tables, *lora = (
            view(static, start, shape, dtype)
            for start, (shape, dtype) in zip(starts, shapes, strict=True)
        )
        segments = None
        if self._bounds:
            empty = segment_tables((), self.rows, self._bounds)
            segments = LoRASegments.of_tables(empty, *lora, num_rows=self.rows)
        each = torch.arange(self.rows + 1, device=static.device)
        return ForwardInput(
            input_ids=ids,
            positions=positions,
            kv_slots=slots,
            last_token_indices=each[:-1],
            cu_seqlens_q=each.to(torch.int32),
            context_lens=contexts,
            block_tables=tables,
            segments=segments,
            max_seqlen_q=1,
            max_context_len=self._state.limits.context,
            has_decode=True,
            has_prefill=False,
        )


def input_shapes(
    rows: int, max_blocks: int, bounds: LaunchBounds | None
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Ids, positions, kv slots, context lengths, block tables; LoRA counts, tiles, pairs."""
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = [((rows,), torch.int64)] * 3
    shapes += [((rows,), torch.int32), ((rows, max_blocks), torch.int32)]
    if bounds:
        shapes += [((4,), torch.int32)]
        shapes += [((count, 4), torch.int32) for count in (bounds.tiles, bounds.pairs)]
    return shapes


def lora_bounds(limits: GraphLimits, rows: int, pool_pages: int) -> LaunchBounds:
    return LaunchBounds.for_decode(rows, limits.pages_per_adapter, pool_pages)


def blocks_of(limits: GraphLimits, kv: KVCache) -> int:
    """KV blocks of the longest sequence."""
    return -(-limits.context // kv.block_size)


def static_bytes(limits: GraphLimits, kv: KVCache, pool_pages: int) -> int:
    """Of the inputs of the largest pass."""
    bounds = lora_bounds(limits, limits.rows, pool_pages)
    shapes = input_shapes(limits.rows, blocks_of(limits, kv), bounds)
    return offsets([_nbytes(shape, dtype) for shape, dtype in shapes])[1]


def _nbytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return int(np.prod(shape)) * dtype.itemsize
