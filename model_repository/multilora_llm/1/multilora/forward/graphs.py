"""DecodeGraphs: decode passes captured as CUDA graphs, so that a step costs one launch.

A DecodeGraph is one pass of a fixed number of rows, captured once and replayed for any batch that
it holds. Its inputs lie at fixed places of a static buffer. A batch is padded to the captured size:
padding rows have no context, write no K and V, and belong to no adapter. Grids have the size of the
bounds and the kernels read the real counts on the device, so that every mix of adapters replays
rightly.

There is one graph per batch size of `sizes` and family (with LoRA, without), and a batch takes the
smallest that holds it. All share one memory
pool and one static input buffer, and are captured from the largest down, so that the smaller ones
fit into memory that is there already.
"""

import functools
import logging
from bisect import bisect_left
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from multilora.forward.decoder import Decoder
from multilora.forward.kv_cache import KVCache
from multilora.forward.staging import StagingBuffer, offsets, view
from multilora.forward.step_input import StepArrays, StepFields, StepInput, batch_segments
from multilora.lora.linear import DEFAULT_PLAN, PLANS, LoRAPlan
from multilora.lora.rank_pages import RankPagePool
from multilora_kernels.row_groups import Segment
from multilora_kernels.segments import LaunchBounds, LoRASegments, segment_tables

_LOG = logging.getLogger(__name__)
_SPARE_BYTES = 1 << 16  # of the static buffer, for what the sampler needs
_TRIED = (16, 64)  # classes of batch sizes, each with a plan of its own: so many rows, and more
_ROUNDS = 6  # of each plan; the first warms up
Replay = Callable[[], object]


class GraphLimits(NamedTuple):
    """What captured passes must be able to hold."""

    rows: int  # sequences in one pass
    context: int  # tokens of one sequence
    pages_per_adapter: int


class GraphState(NamedTuple):
    """What all graphs share. `static` uint8, `logits` float32 [rows, vocab]."""

    model: Decoder
    kv: KVCache
    adapters: RankPagePool
    limits: GraphLimits
    pool_pages: int  # that a batch may use
    static: torch.Tensor
    logits: torch.Tensor


class DecodeGraph:
    """`with_lora` False: for batches of base rows only."""

    def __init__(self, state: GraphState, rows: int, with_lora: bool) -> None:
        self.rows = rows
        self.with_lora = with_lora
        self._state = state
        self._bounds = lora_bounds(state.limits, rows, state.pool_pages) if with_lora else None
        self._max_blocks = blocks_of(state.limits, state.kv)
        self._host_shapes = [
            (shape, np.dtype(str(dtype).removeprefix("torch.")))
            for shape, dtype in _shapes(rows, self._max_blocks)
        ]
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

    def prepare(self, arrays: StepArrays) -> tuple[StagingBuffer, Callable[[], torch.Tensor]]:
        """A staging buffer that holds the batch, and what runs it, once that was sent → logits."""
        replay, count = self._replay, arrays.num_rows
        if replay is None:
            raise RuntimeError("prepare before capture")
        staging = self._load(batch_segments(arrays.batch), count, arrays)

        def run() -> torch.Tensor:
            replay()
            return self._state.logits[:count]

        return staging, run

    def input_ids(self) -> torch.Tensor:
        """int64 [rows], where `prepare` puts those of a batch."""
        return self._inputs.input_ids

    def _load(
        self, segments: tuple[Segment, ...], count: int, arrays: StepArrays | None = None
    ) -> StagingBuffer:
        """`count` real rows; without `arrays` each sees one token, and writes none."""
        rows = self.rows
        staging = StagingBuffer(self._state.static.device, self._state.static)
        fields = StepFields(*(np.zeros(shape, dtype) for shape, dtype in self._host_shapes))
        fields.kv_slots[:], fields.context_lens[:count] = -1, 1
        if arrays:
            for target, given in zip(fields, arrays.fields, strict=True):
                target[tuple(map(slice, given.shape))] = given
        for array in fields:
            staging.add(array)
        if self._bounds:
            lora = segment_tables(segments, rows, self._bounds)
            for array in (lora.counts, lora.tiles, lora.pairs):
                staging.add(array)
        return staging

    def _static_inputs(self) -> StepInput:
        """Views of the places where StagingBuffer puts what _load adds."""
        shapes = _all_shapes(self.rows, self._max_blocks, self._bounds)
        starts, _ = offsets([_nbytes(shape, dtype) for shape, dtype in shapes])
        static = self._state.static
        views = [
            view(static, start, shape, dtype)
            for start, (shape, dtype) in zip(starts, shapes, strict=True)
        ]
        fields: StepFields[torch.Tensor] = StepFields(*views[: len(StepFields._fields)])
        segments = None
        if self._bounds:
            empty = segment_tables((), self.rows, self._bounds)
            lora = views[len(fields) :]
            segments = LoRASegments.of_tables(empty, *lora, num_rows=self.rows)
        each = torch.arange(self.rows + 1, device=static.device)
        return StepInput(
            **fields._asdict(),
            last_token_indices=each[:-1],
            cu_seqlens_q=each.to(torch.int32),
            segments=segments,
            max_seqlen_q=1,
            max_context_len=self._state.limits.context,
            has_decode=True,
            has_prefill=False,
        )


_Shape = tuple[tuple[int, ...], torch.dtype]


def _shapes(rows: int, max_blocks: int) -> StepFields[_Shape]:
    return StepFields(
        input_ids=((rows,), torch.int64),
        positions=((rows,), torch.int64),
        kv_slots=((rows,), torch.int64),
        context_lens=((rows,), torch.int32),
        block_tables=((rows, max_blocks), torch.int32),
    )


def _all_shapes(rows: int, max_blocks: int, bounds: LaunchBounds | None) -> list[_Shape]:
    """Each array in the static buffer: the fields, then LoRA counts, tiles, pairs."""
    shapes = list(_shapes(rows, max_blocks))
    if bounds:
        lora = (4,), (bounds.tiles, 4), (bounds.pairs, 4)
        shapes += [(shape, torch.int32) for shape in lora]
    return shapes


def lora_bounds(limits: GraphLimits, rows: int, pool_pages: int) -> LaunchBounds:
    return LaunchBounds.for_decode(rows, limits.pages_per_adapter, pool_pages)


def blocks_of(limits: GraphLimits, kv: KVCache) -> int:
    """KV blocks of the longest sequence."""
    return -(-limits.context // kv.block_size)


def static_bytes(limits: GraphLimits, kv: KVCache, pool_pages: int) -> int:
    """Bytes of the static inputs of the largest pass."""
    bounds = lora_bounds(limits, limits.rows, pool_pages)
    shapes = _all_shapes(limits.rows, blocks_of(limits, kv), bounds)
    return offsets([_nbytes(shape, dtype) for shape, dtype in shapes])[1]


def _nbytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return int(np.prod(shape)) * dtype.itemsize


def graph_sizes(rows: int) -> tuple[int, ...]:
    """Numbers of rows to capture, ascending: at most 1/8 of a replayed pass is padding from 64
    rows on, and below that rows cost little beside the weights."""
    sizes = {1, 2, 4, *range(8, min(rows, 64) + 1, 8), *range(80, min(rows, 256) + 1, 16)}
    sizes |= set(range(288, rows + 1, 32))
    return tuple(sorted(size for size in sizes | {rows} if size <= rows))


class DecodeGraphs:
    """Nothing is captured before `capture`. `limits.rows` is the largest batch that replays."""

    def __init__(
        self,
        model: Decoder,
        kv: KVCache,
        adapters: RankPagePool,
        limits: GraphLimits,
        device: torch.device,
        pool_pages: int | None = None,
    ) -> None:
        """`pool_pages`: make room for a pool of so many, where `adapters` is a trial one."""
        pool_pages = pool_pages or adapters.num_pages
        size = static_bytes(limits, kv, pool_pages) + _SPARE_BYTES
        static = torch.zeros(size, dtype=torch.uint8, device=device)
        logits = torch.empty(limits.rows, model.base.vocab_size, device=device)
        self.state = GraphState(model, kv, adapters, limits, pool_pages, static, logits)
        self._passes: dict[tuple[int, bool], DecodeGraph] = {}
        self._sizes: tuple[int, ...] = ()
        self._on_gpu = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._on_gpu else None
        self._stream = _capture_stream(device) if self._on_gpu else None
        self.plans: dict[int, LoRAPlan] = {}  # by rows, filled by capture

    def capture(
        self, sizes: tuple[int, ...] | None = None, *, plan: LoRAPlan | None = None
    ) -> None:
        """Capture both families of `sizes` (graph_sizes of the limit). Without a `plan` the
        fastest is measured, on a GPU."""
        wanted = graph_sizes(self.state.limits.rows) if sizes is None else tuple(sorted(sizes))
        for done, rows in enumerate(reversed(wanted)):
            # The family that no plan touches comes first: from then on some graph holds the pool.
            self._add(rows, False, DEFAULT_PLAN)
            self.plans[rows] = plan or self._plan(rows, wanted)
            self._add(rows, True, self.plans[rows])
            if done % 8 == 7 or done + 1 == len(wanted):
                _LOG.info("captured decode for %d of %d batch sizes", done + 1, len(wanted))
        self._sizes = wanted

    def find(self, arrays: StepArrays) -> DecodeGraph | None:
        """The pass to replay, None when the batch is no decode pass or too large."""
        batch = arrays.batch
        rows = arrays.num_rows
        if len(arrays.last_token_indices) != rows or not self._sizes or rows > self._sizes[-1]:
            return None
        return self._passes[self._sizes[bisect_left(self._sizes, rows)], bool(batch.spans)]

    def _add(self, rows: int, with_lora: bool, plan: LoRAPlan) -> None:
        captured = DecodeGraph(self.state, rows, with_lora)
        captured.capture(self._capture, plan)
        self._passes[rows, with_lora] = captured

    def _plan(self, rows: int, sizes: tuple[int, ...]) -> LoRAPlan:
        """Measured at the largest size of each class of sizes, and kept for the others of it."""
        if not self._on_gpu:
            return DEFAULT_PLAN
        above = [size for size in sizes if size > rows and _class(size) == _class(rows)]
        if above:
            return self.plans[above[-1]]
        trial = DecodeGraph(self.state, rows, with_lora=True)

        def prepare(plan: LoRAPlan) -> Replay:
            return trial.capture(self._capture, plan)

        best = fastest_plan(prepare, trial.load_trial)
        _LOG.info("decode of %d rows and fewer: %s", rows, best)
        return best

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


def _class(rows: int) -> int:
    return bisect_left(_TRIED, rows)


def fastest_plan(
    prepare: Callable[[LoRAPlan], Callable[[], object]], load: Callable[[], None]
) -> LoRAPlan:
    """`prepare` makes what runs one pass with a plan; then `load` fills in what it runs on.

    Rounds are interleaved, so that a change of clocks meets all plans; the best time of each
    counts. Needs a GPU.
    """
    runs = [prepare(plan) for plan in PLANS]
    load()
    best = [float("inf")] * len(runs)
    for _ in range(_ROUNDS):
        for index, run in enumerate(runs):
            best[index] = min(best[index], _milliseconds(run))
    return PLANS[best.index(min(best))]


def _milliseconds(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
