"""ForwardInput: a Batch as device tensors.

ForwardArrays is the same on the host, in numpy: the only place where the host lists of a Batch
become arrays. They travel to the device in an Upload.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from multilora.forward.staging import Upload
from multilora.scheduling.batch import Batch, BatchItem
from multilora_kernels.openai_triton import INTERPRETED
from multilora_kernels.row_groups import Segment
from multilora_kernels.segments import LoRASegments, segment_tables


@dataclass(frozen=True)
class ForwardInput:
    """One forward pass of T rows (new tokens) of S items."""

    input_ids: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T], in the row's own sequence
    kv_slots: torch.Tensor  # int64 [T], where the row's K and V go; -1: nowhere (padding)
    last_token_indices: torch.Tensor  # int64 [N], rows of items with .samples, in item order
    cu_seqlens_q: torch.Tensor  # int32 [S + 1], first row of each item; then T
    context_lens: torch.Tensor  # int32 [S], tokens attended to, the new ones included
    block_tables: torch.Tensor  # int32 [S, max_blocks], zero-padded
    segments: LoRASegments | None  # None when every row is a base row
    max_seqlen_q: int
    max_context_len: int
    has_decode: bool = True  # whether some item has one row
    has_prefill: bool = True  # whether some item has more


@dataclass(frozen=True, eq=False)
class ForwardArrays:
    """A Batch in numpy, filled by forward_arrays; fields as those of ForwardInput."""

    input_ids: np.ndarray
    positions: np.ndarray
    kv_slots: np.ndarray
    last_token_indices: np.ndarray
    cu_seqlens_q: np.ndarray
    context_lens: np.ndarray
    block_tables: np.ndarray
    num_new_tokens: np.ndarray  # int64 [S]
    batch: Batch

    @property
    def num_rows(self) -> int:
        return len(self.input_ids)


def forward_arrays(batch: Batch, block_size: int) -> ForwardArrays:
    """Rows in the order of batch.items; the batch must not be empty."""
    items = batch.items
    new = np.array([item.num_new_tokens for item in items], dtype=np.int64)
    starts = np.array([item.sequence.num_computed_tokens for item in items], dtype=np.int64)
    contexts = starts + new
    cu_seqlens = np.zeros(len(items) + 1, dtype=np.int64)
    np.cumsum(new, out=cu_seqlens[1:])
    row_item = np.repeat(np.arange(len(items)), new)
    positions = np.arange(cu_seqlens[-1]) + np.repeat(starts - cu_seqlens[:-1], new)
    tables = _block_tables(items, -(-contexts // block_size))
    own_block = tables[row_item, positions // block_size].astype(np.int64)
    samples = np.array([item.samples for item in items], dtype=bool)
    return ForwardArrays(
        input_ids=_input_ids(items),
        positions=positions,
        kv_slots=own_block * block_size + positions % block_size,
        last_token_indices=cu_seqlens[1:][samples] - 1,
        cu_seqlens_q=cu_seqlens.astype(np.int32),
        context_lens=contexts.astype(np.int32),
        block_tables=tables,
        num_new_tokens=new,
        batch=batch,
    )


def add_forward_input(
    arrays: ForwardArrays, upload: Upload, device: torch.device, dtype: torch.dtype
) -> Callable[[], ForwardInput]:
    """Add a batch to `upload` → its tensors, once that has been sent. `dtype` is the engine's."""
    handles = [
        upload.add(array)
        for array in (
            arrays.input_ids,
            arrays.positions,
            arrays.kv_slots,
            arrays.last_token_indices,
            arrays.cu_seqlens_q,
            arrays.context_lens,
            arrays.block_tables,
        )
    ]
    segments = _add_segments(arrays.batch, arrays.num_rows, upload, device, dtype)
    longest, shortest = int(arrays.num_new_tokens.max()), int(arrays.num_new_tokens.min())
    return lambda: ForwardInput(
        *(handle() for handle in handles),
        segments=segments(),
        max_seqlen_q=longest,
        max_context_len=int(arrays.context_lens.max()),
        has_decode=shortest == 1,
        has_prefill=longest > 1,
    )


def build_forward_input(
    batch: Batch, block_size: int, device: torch.device, dtype: torch.dtype
) -> ForwardInput:
    """A batch alone on its way to the device."""
    upload = Upload(device)
    forward_input = add_forward_input(forward_arrays(batch, block_size), upload, device, dtype)
    upload.send()
    return forward_input()


def batch_segments(batch: Batch) -> tuple[Segment, ...]:
    """The adapter rows of a batch as the kernels know them."""
    return tuple(Segment(span.row_start, span.row_count, span.pages) for span in batch.spans)


def _add_segments(
    batch: Batch, num_rows: int, upload: Upload, device: torch.device, dtype: torch.dtype
) -> Callable[[], LoRASegments | None]:
    if not batch.spans:
        return lambda: None
    segments = batch_segments(batch)
    if device.type == "cpu" and not INTERPRETED:
        starts, counts, pages = zip(*segments, strict=True)
        on_cpu = LoRASegments.from_lists(starts, counts, pages, num_rows, device, dtype)
        return lambda: on_cpu
    tables = segment_tables(segments, num_rows)
    handles = [upload.add(array) for array in (tables.counts, tables.tiles, tables.pairs)]
    return lambda: LoRASegments.of_tables(
        tables, *(handle() for handle in handles), num_rows=num_rows
    )


def _input_ids(items: Sequence[BatchItem]) -> np.ndarray:
    ids: list[int] = []
    for sequence, count in items:
        start = sequence.num_computed_tokens
        ids += sequence.token_ids[start : start + count]
    return np.array(ids, dtype=np.int64)


def _block_tables(items: Sequence[BatchItem], num_blocks: np.ndarray) -> np.ndarray:
    """int32 [S, max_blocks]: the blocks that item s attends to, then zeros."""
    tables = np.zeros((len(items), int(num_blocks.max())), dtype=np.int32)
    for row, item, count in zip(tables, items, num_blocks.tolist(), strict=True):
        row[:count] = item.sequence.block_table[:count]
    return tables
