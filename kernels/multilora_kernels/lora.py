"""The update that all adapters of a batch add to one fused projection, y += (x · A) · B.

add_lora chooses by device: OpenAI Triton kernels on a GPU, batched torch products on a CPU. Where
kernels run the halves may be apart, and the sum too: shrink gives the update, expand makes of it
what is still to be added (delta), beside the projection itself, and the kernel that reads the
projection adds that; SwiGLU can also expand on the fly. An embedding's x are token ids, which
stand for one-hot rows: add_lookup.
"""

from typing import NamedTuple

import torch

from multilora_kernels.expand import expand_cpu, expand_gpu
from multilora_kernels.lookup import lookup_cpu, lookup_gpu
from multilora_kernels.openai_triton import uses_kernels
from multilora_kernels.segments import LoRASegments
from multilora_kernels.shrink import shrink_cpu, shrink_gpu


class LoRAUpdate(NamedTuple):
    """y += h · B, still to be added. Filled by shrink."""

    h: torch.Tensor  # [max_pairs, tile_rows, slices * 16]; only real rows are set
    b: torch.Tensor  # [pages, 16, out_total]
    slice_sizes: tuple[int, ...]  # columns of each slice
    segments: LoRASegments


def shrink(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    slice_sizes: tuple[int, ...],
    segments: LoRASegments,
) -> LoRAUpdate:
    """The first half, arguments as add_lora's; kernels only."""
    return LoRAUpdate(shrink_gpu(x, a, segments), b, slice_sizes, segments)


def expand(update: LoRAUpdate) -> torch.Tensor:
    """The second half: delta [T, out_total] = h · B, 0 in rows without an adapter; kernels only."""
    h, b, sizes, segments = update
    delta = torch.empty(segments.num_rows, b.shape[2], dtype=b.dtype, device=b.device)
    expand_gpu(h, b, sizes, segments, delta, add=False)
    return delta


def add_update(y: torch.Tensor, update: LoRAUpdate) -> None:
    """The second half onto y [T, out_total]; kernels only."""
    expand_gpu(update.h, update.b, update.slice_sizes, update.segments, y, add=True)


def add_lora(
    y: torch.Tensor,
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    slice_sizes: tuple[int, ...],
    segments: LoRASegments,
) -> None:
    """y [T, out_total] += x [T, in] · a [pages, slices, 16, in] · b [pages, 16, out_total].

    All of one float dtype and on one device, rows contiguous; rows of no segment are not touched.
    `slice_sizes` (one to three, summing to out_total) says which columns belong to which slice.
    """
    if uses_kernels(x):
        add_update(y, shrink(x, a, b, slice_sizes, segments))
    else:
        expand_cpu(shrink_cpu(x, a, segments), b, slice_sizes, segments, y)


def add_lookup(
    y: torch.Tensor,
    ids: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    segments: LoRASegments,
) -> None:
    """As add_lora, of an embedding: ids int64 [T], a [pages, 1, 16, vocab], b [pages, 16, out]."""
    if uses_kernels(y):
        h = lookup_gpu(ids, a, segments)
        expand_gpu(h, b, (b.shape[2],), segments, y, add=True)
    else:
        expand_cpu(lookup_cpu(ids, a, segments), b, (b.shape[2],), segments, y)
