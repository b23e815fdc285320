"""PassGraphs: passes captured as CUDA graphs, so that a step costs one launch.

A PassGraph is one pass of a fixed number of rows, captured once and replayed for any batch that it
holds. Its inputs lie at fixed places of a static buffer. A batch is padded to the captured size:
padding rows belong to no sequence and to no adapter, and write no K and V; what they compute nobody
reads, and each row is computed by itself. Grids have the size of the bounds and the kernels read
the real counts on the device, so that every mix of prompts, decode rows and adapters replays
rightly.

There is one graph per bucket of `buckets` and family (with LoRA, without), and a batch takes the
smallest bucket that holds it: in decode passes each sequence has one row, in mixed ones any number.
Larger passes than the largest bucket are launched one by one. All graphs share one memory pool and
one static input buffer, and are captured from the largest down, so that the smaller ones fit into
memory that is there already.
"""

import functools
import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from multilora.forward.base_model import BaseModel, KVCache
from multilora.forward.staging import StagingBuffer, offsets, view
from multilora.forward.step_input import StepArrays, StepFields, StepInput, batch_segments
from multilora.lora.rank_pages import RankPagePool
from multilora_kernels.paged_prefill import most_query_tiles, prefill_queries
from multilora_kernels.row_groups import Segment
from multilora_kernels.segments import LaunchBounds, LoRASegments, segment_tables

_LOG = logging.getLogger(__name__)
_SPARE_BYTES = 1 << 16  # of the static buffer, for what the sampler needs
_MIXED = (16, 32, 64, 96, 128, 192, 256, 384, 512)  # rows of mixed passes
MOST_MIXED_ROWS = _MIXED[-1]
Replay = Callable[[], object]


class GraphLimits(NamedTuple):
    """What captured passes must be able to hold."""

    rows: int  # sequences in one pass
    context: int  # tokens of one sequence
    pages_per_adapter: int
    mixed_rows: int = 0  # of passes that hold prompts, too; 0: only decode is captured


class Bucket(NamedTuple):
    """The size of a captured pass. Of as many sequences with one row each or, `mixed`, of up to
    `limits.rows` sequences with any number of rows."""

    rows: int
    mixed: bool = False


class GraphState(NamedTuple):
    """What all graphs share. `static` uint8, `logits` float32 [rows, vocab]."""

    model: BaseModel
    kv: KVCache
    adapters: RankPagePool
    limits: GraphLimits
    pool_pages: int  # that a batch may use
    static: torch.Tensor
    logits: torch.Tensor


class PassGraph:
    """`with_lora` False: for batches of base rows only."""

    def __init__(self, state: GraphState, bucket: Bucket, with_lora: bool) -> None:
        self.bucket = bucket
        self.with_lora = with_lora
        self._state = state
        self._shapes = _Shapes.of(state, bucket, with_lora)
        self._inputs = self._static_inputs()
        self._replay: Replay | None = None

    def capture(self, capture: Callable[[Replay], Replay]) -> None:
        """From now on `prepare` replays it."""
        state, out = self._state, self._state.logits[: self._shapes.sequences]
        self._load(_of_nobody(), *[()] * len(self._shapes.lora)).send()
        self._replay = capture(
            lambda: state.model.forward(self._inputs, state.kv, state.adapters, out)
        )

    def prepare(self, arrays: StepArrays) -> tuple[StagingBuffer, Callable[[], torch.Tensor]]:
        """A staging buffer that holds the batch, and what runs it, once that was sent → logits."""
        replay, shapes = self._replay, self._shapes
        if replay is None:
            raise RuntimeError("prepare before capture")
        fields = arrays.cut(shapes.queries) if self.bucket.mixed else arrays.fields
        sampled = fields.last_token_indices
        rows = (None, sampled)[: len(shapes.lora)]
        staging = self._load(fields, *(batch_segments(arrays.batch, each) for each in rows))
        count = len(sampled)

        def run() -> torch.Tensor:
            replay()
            return self._state.logits[:count]

        return staging, run

    def input_ids(self) -> torch.Tensor:
        """int64 [rows], where `prepare` puts those of a batch."""
        return self._inputs.input_ids

    def _load(self, given: StepFields[np.ndarray], *segments: tuple[Segment, ...]) -> StagingBuffer:
        """The fields and tables of a batch, padded; segments for each of `lora`."""
        staging = StagingBuffer(self._state.static.device, self._state.static)
        fields = StepFields(*(np.zeros(shape, dtype) for shape, dtype in self._shapes.on_host))
        fields.kv_slots[:], fields.cu_seqlens_q[:] = -1, given.cu_seqlens_q[-1]
        for target, array in zip(fields, given, strict=True):
            target[tuple(map(slice, array.shape))] = array
            staging.add(target)
        for own, (rows, bounds) in zip(segments, self._shapes.lora, strict=True):
            lora = segment_tables(own, rows, bounds)
            for array in (lora.counts, lora.tiles, lora.pairs):
                staging.add(array)
        return staging

    def _static_inputs(self) -> StepInput:
        """Views of the places where StagingBuffer puts what _load adds."""
        static, shapes = self._state.static, self._shapes
        starts, _ = offsets(shapes.sizes())
        views = [
            view(static, start, shape, dtype)
            for start, (shape, dtype) in zip(starts, shapes.all(), strict=True)
        ]
        fields: StepFields[torch.Tensor] = StepFields(*views[: len(StepFields._fields)])
        segments: list[LoRASegments | None] = []
        for index, (rows, bounds) in enumerate(shapes.lora):
            first = len(fields) + 3 * index
            empty = segment_tables((), rows, bounds)
            own = LoRASegments.of_tables(empty, *views[first : first + 3], num_rows=rows)
            segments.append(own)
        everywhere, sampled = (*segments, None, None)[:2]
        return StepInput(
            **fields._asdict(),
            queries=shapes.queries,
            segments=everywhere,
            has_decode=True,
            sampled=sampled,
        )


_Shape = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class _Shapes:
    """Of what stands in the static buffer: the fields, then LoRA counts, tiles, pairs for each of
    `lora` (number of rows, bounds): all rows and, where adapters act there, those that sample."""

    fields: StepFields[_Shape]
    lora: tuple[tuple[int, LaunchBounds], ...]
    sequences: int
    queries: int  # of one query tile

    @staticmethod
    def of(state: GraphState, bucket: Bucket, with_lora: bool) -> "_Shapes":
        rows, limits, kv = bucket.rows, state.limits, state.kv
        sequences, max_blocks = min(rows, limits.rows), -(-limits.context // kv.block_size)
        queries = prefill_queries(state.model.base.num_heads, kv.k)
        tiles = most_query_tiles(rows, sequences, queries) if bucket.mixed else 0
        counts = [rows, sequences] if state.model.base.adapts_sampled else [rows]
        pages = limits.pages_per_adapter, state.pool_pages
        lora = [(count, LaunchBounds.for_pass(count, sequences, *pages)) for count in counts]
        fields = StepFields(
            input_ids=((rows,), torch.int64),
            positions=((rows,), torch.int64),
            kv_slots=((rows,), torch.int64),
            context_lens=((sequences,), torch.int32),
            block_tables=((sequences, max_blocks), torch.int32),
            cu_seqlens_q=((sequences + 1,), torch.int32),
            last_token_indices=((sequences,), torch.int64),
            query_tiles=((tiles, 4), torch.int32),
        )
        return _Shapes(fields, tuple(lora) if with_lora else (), sequences, queries)

    @functools.cached_property
    def on_host(self) -> list[tuple[tuple[int, ...], np.dtype]]:
        """Of the fields, as numpy has them."""
        return [
            (shape, np.dtype(str(dtype).removeprefix("torch."))) for shape, dtype in self.fields
        ]

    def all(self) -> list[_Shape]:
        shapes = list(self.fields)
        for _, bounds in self.lora:
            tables = (4,), (bounds.tiles, 4), (bounds.pairs, 4)
            shapes += [(shape, torch.int32) for shape in tables]
        return shapes

    def sizes(self) -> list[int]:
        """Bytes of each."""
        return [_nbytes(shape, dtype) for shape, dtype in self.all()]


def _nbytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return int(np.prod(shape)) * dtype.itemsize


def _of_nobody() -> StepFields[np.ndarray]:
    """The fields of a batch without items: all rows of a pass that loads them are padding."""
    none = np.zeros(0, dtype=np.int64)
    return StepFields(
        input_ids=none,
        positions=none,
        kv_slots=none,
        context_lens=none,
        block_tables=np.zeros((0, 0), dtype=np.int32),
        cu_seqlens_q=np.zeros(1, dtype=np.int64),
        last_token_indices=none,
        query_tiles=np.zeros((0, 4), dtype=np.int32),
    )


def buckets(limits: GraphLimits) -> tuple[Bucket, ...]:
    """What to capture, ascending.

    Decode: at most 3/16 of a replayed pass is padding from 64 rows on, and below that rows cost
    little beside the weights. Mixed: rows cost from some hundred on, but tensor-core products go
    in steps of 128 rows there.
    """
    rows = limits.rows
    sizes = {1, 2, 4, rows, *range(8, 65, 8), *range(80, 257, 16), *range(288, rows, 32)}
    mixed = [size for size in _MIXED if size < limits.mixed_rows]
    mixed += [size for size in _MIXED if size >= limits.mixed_rows > 0][:1]
    decode = [Bucket(size) for size in sizes if size <= rows]
    return tuple(sorted([*decode, *(Bucket(size, mixed=True) for size in mixed)]))


class PassGraphs:
    """Nothing is captured before `capture`. `limits.rows` is the largest decode pass that replays,
    `limits.mixed_rows` the largest of the others."""

    def __init__(
        self,
        model: BaseModel,
        kv: KVCache,
        adapters: RankPagePool,
        limits: GraphLimits,
        device: torch.device,
        pool_pages: int | None = None,
    ) -> None:
        """`pool_pages`: make room for a pool of so many, where `adapters` is a trial one."""
        pool_pages = pool_pages or adapters.num_pages
        logits = torch.empty(limits.rows, model.base.vocab_size, device=device)
        nothing = torch.empty(0, dtype=torch.uint8, device=device)
        state = GraphState(model, kv, adapters, limits, pool_pages, nothing, logits)
        most = max(offsets(_Shapes.of(state, each, True).sizes())[1] for each in buckets(limits))
        static = torch.zeros(most + _SPARE_BYTES, dtype=torch.uint8, device=device)
        self.state = state._replace(static=static)
        self._passes: dict[tuple[Bucket, bool], PassGraph] = {}
        self._buckets: tuple[Bucket, ...] = ()
        self._on_gpu = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._on_gpu else None
        self._stream = _capture_stream(device) if self._on_gpu else None

    def capture(self, wanted: Sequence[Bucket] | None = None) -> None:
        """Capture both families of what is `wanted` (`buckets` of the limits)."""
        wanted = buckets(self.state.limits) if wanted is None else tuple(sorted(wanted))
        for done, bucket in enumerate(reversed(wanted)):
            self._add(bucket, with_lora=False)
            self._add(bucket, with_lora=True)
            if done % 8 == 7 or done + 1 == len(wanted):
                _LOG.info("captured passes of %d of %d sizes", done + 1, len(wanted))
        self._buckets = wanted

    def find(self, arrays: StepArrays) -> PassGraph | None:
        """The pass to replay, None when the batch is larger than what was captured."""
        if len(arrays.num_new_tokens) > self.state.limits.rows:
            return None
        rows, mixed = arrays.num_rows, arrays.has_prefill
        for bucket in self._buckets[bisect_left(self._buckets, (rows, False)) :]:
            if bucket.mixed == mixed:
                return self._passes[bucket, bool(arrays.batch.spans)]
        return None

    def _add(self, bucket: Bucket, with_lora: bool) -> None:
        captured = PassGraph(self.state, bucket, with_lora)
        captured.capture(self._capture)
        self._passes[bucket, with_lora] = captured

    def _capture(self, run: Callable[[], object]) -> Replay:
        stream = self._stream
        if stream is None:
            return run
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles what is new, and fills caches
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # What other threads do on the device meanwhile (adapters that load) is no concern of it.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
        ):
            run()
        return graph.replay


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all, trials too: cuBLAS keeps work space for each stream that it has seen."""
    return torch.cuda.Stream(device)
