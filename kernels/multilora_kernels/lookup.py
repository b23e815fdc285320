"""Lookup, the first half of the update of an embedding: h = the columns of A that token ids name.

    h[t, j] = a[page p of row t, 0, j, ids[t]]        j = 0 … 15

ids int64 [T], a [pages, 1, 16, vocab] → h as shrink gives it of one slice, so that expand makes the
update of it. It is what shrink gives for rows that are one-hot, rounded nowhere. Floor: 16 numbers
a row and page, each in a sector of its own, which is less than a row of the embedding itself: hence
torch's gathers, whose shapes follow from the tables alone, so that a captured CUDA graph replays
them for any mix. What belongs to no real row of a pair is some other column.
"""

import torch

from multilora_kernels.segments import LoRASegments


def lookup_gpu(ids: torch.Tensor, a: torch.Tensor, segments: LoRASegments) -> torch.Tensor:
    """h [max_pairs, tile_rows, 16]."""
    pairs = segments.pairs.long()
    m = torch.arange(segments.tile_rows, device=pairs.device)
    rows = (pairs[:, :1] + m).clamp_(max=len(ids) - 1)
    return a[:, 0][pairs[:, 2:3], :, ids[rows]].contiguous()


def lookup_cpu(ids: torch.Tensor, a: torch.Tensor, segments: LoRASegments) -> list[torch.Tensor]:
    """For each group h [1, S, R, P, 16]."""
    parts: list[torch.Tensor] = []
    for count, rows, pages in segments.groups:
        if isinstance(pages, slice):
            pages = torch.arange(pages.start, pages.stop)
        pages, own = pages.view(count, 1, -1), ids[rows].view(count, -1, 1)
        parts.append(a[:, 0][pages, :, own].unsqueeze(0))
    return parts


def lookup_reference(
    ids: torch.Tensor, a: torch.Tensor, segments: LoRASegments
) -> list[torch.Tensor]:
    """float64, one [rows, pages, 1, 16] per segment."""
    return [
        a[list(pages)][..., ids[start : start + count]].double().permute(3, 0, 1, 2)
        for start, count, pages in segments.segments
    ]
