"""StepInput: a Batch as device tensors.

StepArrays is the same on the host, in numpy: the only place where the host lists of a Batch become
arrays. They travel to the device in a StagingBuffer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from multilora.forward.staging import Handle, StagingBuffer
from multilora.scheduling.batch import Batch, BatchItem
from multilora_kernels.openai_triton import INTERPRETED
from multilora_kernels.paged_prefill import query_tiles
from multilora_kernels.row_groups import Segment
from multilora_kernels.segments import LaunchBounds, LoRASegments, segment_tables

FieldT = TypeVar("FieldT")
_QUERIES = 16  # of a tile, where it matters to nobody


class StepFields(NamedTuple, Generic[FieldT]):
    """What a step brings to the device whatever its kind, in the order in which it travels.

    Of T rows (new tokens) of S items, N of which sample. A field is an array, a tensor, or the
    description of one.
    """

    input_ids: FieldT  # int64 [T]
    positions: FieldT  # int64 [T], in the row's own sequence
    kv_slots: FieldT  # int64 [T], where the row's K and V go; -1: nowhere (padding)
    context_lens: FieldT  # int32 [S], tokens attended to, the new ones included
    block_tables: FieldT  # int32 [S, max_blocks], zero-padded
    cu_seqlens_q: FieldT  # int32 [S + 1], first row of each item; then T
    last_token_indices: FieldT  # int64 [N], rows of items with .samples, in item order
    query_tiles: FieldT  # int32 [tiles, 4], of items with several rows; see query_tiles


@dataclass(frozen=True)
class StepInput:
    """One forward pass of T rows (new tokens) of S items; StepFields describes the tensors."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    kv_slots: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    cu_seqlens_q: torch.Tensor
    last_token_indices: torch.Tensor
    query_tiles: torch.Tensor
    queries: int  # that a tile has at most
    segments: LoRASegments | None  # None when every row is a base row
    has_decode: bool = True  # whether some item has one row
    has_fresh_prompts: bool = False  # whether some have more, and none of these context before them
    sampled: LoRASegments | None = None  # of the rows last_token_indices, where it matters


@dataclass(frozen=True, eq=False)
class StepArrays:
    """A Batch in numpy, filled by step_arrays."""

    fields: StepFields[np.ndarray]  # not cut into query tiles
    num_new_tokens: np.ndarray  # int64 [S]
    late: np.ndarray  # int64 [L], items whose last token the host does not know; their id is 0
    batch: Batch

    @property
    def num_rows(self) -> int:
        return len(self.fields.input_ids)

    @property
    def late_rows(self) -> np.ndarray:
        """int64 [L]: the rows of the tokens that are not known."""
        return self.fields.cu_seqlens_q[self.late + 1].astype(np.int64) - 1

    @property
    def has_prefill(self) -> bool:
        """Whether some item has several rows."""
        return bool((self.num_new_tokens > 1).any())

    @property
    def has_fresh_prompts(self) -> bool:
        """Whether some items have several rows, and none of these context before them."""
        several = self.num_new_tokens > 1
        cached = self.fields.context_lens > self.num_new_tokens
        return bool(several.any() and not (several & cached).any())

    def cut(self, queries: int) -> StepFields[np.ndarray]:
        """The fields with query tiles of so many queries."""
        tiles = query_tiles(self.num_new_tokens, self.fields.context_lens, queries)
        return self.fields._replace(query_tiles=tiles)


class LastPass:
    """What the last pass samples. A pass launched behind it takes these late tokens on the device,
    where they are long before the host knows them."""

    def __init__(self, device: torch.device) -> None:
        self.token_ids = torch.empty(0, dtype=torch.int64, device=device)
        self.rows: dict[object, int] = {}  # sequence → its row of token_ids

    def add(self, items: Sequence[BatchItem], staging: StagingBuffer) -> Handle:
        """int64 [L], the late tokens of `items`, once `staging` was sent."""
        rows = staging.add(np.array([self.rows[item.sequence] for item in items]))
        return lambda: self.token_ids.index_select(0, rows())


def step_arrays(batch: Batch, block_size: int) -> StepArrays:
    """Rows in the order of batch.items; the batch must not be empty."""
    items = batch.items
    new = np.array([item.num_new_tokens for item in items], dtype=np.int64)
    starts = np.array([item.start for item in items], dtype=np.int64)
    contexts = starts + new
    cu_seqlens = np.zeros(len(items) + 1, dtype=np.int64)
    np.cumsum(new, out=cu_seqlens[1:])
    row_item = np.repeat(np.arange(len(items)), new)
    positions = np.arange(cu_seqlens[-1]) + np.repeat(starts - cu_seqlens[:-1], new)
    tables = _block_tables(items, -(-contexts // block_size))
    own_block = tables[row_item, positions // block_size].astype(np.int64)
    samples = np.array([item.samples for item in items], dtype=bool)
    known = np.array([len(item.sequence.token_ids) for item in items], dtype=np.int64)
    late = np.flatnonzero(known < contexts)
    return StepArrays(
        fields=StepFields(
            input_ids=_input_ids(items, len(positions), cu_seqlens[late + 1] - 1),
            positions=positions,
            kv_slots=own_block * block_size + positions % block_size,
            context_lens=contexts.astype(np.int32),
            block_tables=tables,
            cu_seqlens_q=cu_seqlens.astype(np.int32),
            last_token_indices=cu_seqlens[1:][samples] - 1,
            query_tiles=np.zeros((0, 4), dtype=np.int32),
        ),
        num_new_tokens=new,
        late=late,
        batch=batch,
    )


def add_step_input(
    arrays: StepArrays,
    staging: StagingBuffer,
    device: torch.device,
    dtype: torch.dtype,
    queries: int = _QUERIES,
    with_sampled: bool = False,
) -> Callable[[], StepInput]:
    """Add a batch to `staging` → its tensors, once that was sent. `dtype` is the engine's;
    `queries` are what prefill attention takes at once; `with_sampled`: adapters act on rows that
    sample (see BaseConfig.adapts_sampled)."""
    fields = [staging.add(array) for array in arrays.cut(queries)]
    own = batch_segments(arrays.batch)
    segments = add_segments(own, arrays.num_rows, staging, device, dtype)
    rows = arrays.fields.last_token_indices
    own = batch_segments(arrays.batch, rows) if with_sampled else ()
    sampled = add_segments(own, len(rows), staging, device, dtype, few=True)
    return lambda: StepInput(
        **StepFields(*(handle() for handle in fields))._asdict(),
        queries=queries,
        segments=segments(),
        has_decode=bool((arrays.num_new_tokens == 1).any()),
        has_fresh_prompts=arrays.has_fresh_prompts,
        sampled=sampled(),
    )


def build_step_input(
    batch: Batch,
    block_size: int,
    device: torch.device,
    dtype: torch.dtype,
    queries: int = _QUERIES,
    with_sampled: bool = False,
) -> StepInput:
    """A batch alone on its way to the device."""
    staging, arrays = StagingBuffer(device), step_arrays(batch, block_size)
    step_input = add_step_input(arrays, staging, device, dtype, queries, with_sampled)
    staging.send()
    return step_input()


def batch_segments(batch: Batch, rows: np.ndarray | None = None) -> tuple[Segment, ...]:
    """The adapter rows of a batch as the kernels know them; with `rows`, some row indices in
    ascending order, those of a tensor that has these rows alone."""
    if rows is None:
        return tuple(Segment(span.row_start, span.row_count, span.pages) for span in batch.spans)
    ends = [span.row_start + span.row_count for span in batch.spans]
    cuts = np.searchsorted(rows, [0, *ends]).tolist()
    return tuple(
        Segment(start, end - start, span.pages)
        for span, start, end in zip(batch.spans, cuts, cuts[1:], strict=False)
    )


def add_segments(
    segments: Sequence[Segment],
    num_rows: int,
    staging: StagingBuffer,
    device: torch.device,
    dtype: torch.dtype,
    few: bool = False,
) -> Callable[[], LoRASegments | None]:
    """Add the tables of segments to `staging` → LoRASegments, once that was sent; None without
    segments. `few`: in tiles of decode, of which kernels are compiled at start, whatever the rows.
    """
    if not segments:
        return lambda: None
    if device.type == "cpu" and not INTERPRETED:
        starts, counts, pages = zip(*segments, strict=True)
        on_cpu = LoRASegments.from_lists(starts, counts, pages, num_rows, device, dtype)
        return lambda: on_cpu
    tables = segment_tables(segments, num_rows, _bounds(segments, num_rows) if few else None)
    handles = [staging.add(array) for array in (tables.counts, tables.tiles, tables.pairs)]
    return lambda: LoRASegments.of_tables(
        tables, *(handle() for handle in handles), num_rows=num_rows
    )


def _bounds(segments: Sequence[Segment], num_rows: int) -> LaunchBounds:
    """Room for these."""
    counts = [len(segment.pages) for segment in segments]
    return LaunchBounds.for_pass(num_rows, len(segments), max(counts), sum(counts))


def _input_ids(items: Sequence[BatchItem], num_rows: int, late_rows: np.ndarray) -> np.ndarray:
    known: list[int] = []
    for item in items:
        known += item.sequence.token_ids[item.start : item.end]
    is_known = np.ones(num_rows, dtype=bool)
    is_known[late_rows] = False
    ids = np.zeros(num_rows, dtype=np.int64)
    ids[is_known] = known
    return ids


def _block_tables(items: Sequence[BatchItem], num_blocks: np.ndarray) -> np.ndarray:
    """int32 [S, max_blocks]: the blocks that item s attends to, then zeros."""
    tables = np.zeros((len(items), int(num_blocks.max())), dtype=np.int32)
    for row, item, count in zip(tables, items, num_blocks.tolist(), strict=True):
        row[:count] = item.sequence.block_table[:count]
    return tables
