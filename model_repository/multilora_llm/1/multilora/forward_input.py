"""ForwardInput: a Batch as device tensors.

build_forward_input is the only place where the host lists of a Batch become tensors. They travel
in one pinned buffer, so a step costs one copy to the device however many fields there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from multilora.batch import Batch, BatchItem
from multilora_kernels.segments import LoRASegments


@dataclass(frozen=True)
class ForwardInput:
    """One forward pass of T rows (new tokens) of S items. Filled by build_forward_input."""

    input_ids: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T], in the row's own sequence
    kv_slots: torch.Tensor  # int64 [T], where the row's K and V go
    last_token_indices: torch.Tensor  # int64 [N], rows of items with .samples, in item order
    cu_seqlens_q: torch.Tensor  # int32 [S + 1], first row of each item; then T
    context_lens: torch.Tensor  # int32 [S], tokens attended to, the new ones included
    block_tables: torch.Tensor  # int32 [S, max_blocks], zero-padded
    segments: LoRASegments | None  # None when every row is a base row
    max_seqlen_q: int
    max_context_len: int


def build_forward_input(
    batch: Batch, block_size: int, device: torch.device, dtype: torch.dtype
) -> ForwardInput:
    """Rows in the order of batch.items. `dtype` is the engine's; the batch must not be empty."""
    items = batch.items
    new = np.array([item.num_new_tokens for item in items], dtype=np.int64)
    starts = np.array([item.sequence.num_computed_tokens for item in items], dtype=np.int64)
    contexts = starts + new
    cu_seqlens = np.zeros(len(items) + 1, dtype=np.int64)
    np.cumsum(new, out=cu_seqlens[1:])
    row_item = np.repeat(np.arange(len(items)), new)
    positions = np.arange(cu_seqlens[-1]) + np.repeat(starts - cu_seqlens[:-1], new)
    tables = _block_tables(items, -(-contexts // block_size))
    kv_slots = tables[row_item, positions // block_size] * block_size + positions % block_size
    samples = np.array([item.samples for item in items], dtype=bool)
    tensors = _upload(
        (
            _input_ids(items),
            positions,
            kv_slots,
            cu_seqlens[1:][samples] - 1,
            cu_seqlens.astype(np.int32),
            contexts.astype(np.int32),
            tables.astype(np.int32),
        ),
        device,
    )
    return ForwardInput(
        *tensors,
        segments=_segments(batch, int(cu_seqlens[-1]), device, dtype),
        max_seqlen_q=int(new.max()),
        max_context_len=int(contexts.max()),
    )


def _input_ids(items: Sequence[BatchItem]) -> np.ndarray:
    ids: list[int] = []
    for sequence, count in items:
        start = sequence.num_computed_tokens
        ids += sequence.token_ids[start : start + count]
    return np.array(ids, dtype=np.int64)


def _block_tables(items: Sequence[BatchItem], num_blocks: np.ndarray) -> np.ndarray:
    """[S, max_blocks]: the blocks that item s attends to, then zeros."""
    width = int(num_blocks.max())
    flat: list[int] = []
    for item, count in zip(items, num_blocks.tolist(), strict=True):
        flat += item.sequence.block_table[:count]
        flat += [0] * (width - count)
    return np.array(flat, dtype=np.int64).reshape(len(items), width)


def _segments(
    batch: Batch, num_rows: int, device: torch.device, dtype: torch.dtype
) -> LoRASegments | None:
    if not batch.spans:
        return None
    return LoRASegments.from_lists(
        [span.row_start for span in batch.spans],
        [span.row_count for span in batch.spans],
        [span.pages for span in batch.spans],
        num_rows,
        device,
        dtype,
    )


def _upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Device tensors of the same dtypes (int64, int32) and shapes, by one asynchronous copy.

    Each starts at a multiple of 16 bytes, as a tensor of its own would: OpenAI Triton compiles a
    kernel anew for a pointer that does not.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    ends = np.cumsum([-(-array.nbytes // 16) * 16 for array in arrays]).tolist()
    starts = [0, *ends[:-1]]
    host = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for array, start in zip(arrays, starts, strict=True):
        host.numpy()[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    buffer = host.to(device, non_blocking=True)
    return [
        buffer[start : start + array.nbytes]
        .view(torch.int64 if array.dtype == np.int64 else torch.int32)
        .view(array.shape)
        for array, start in zip(arrays, starts, strict=True)
    ]
