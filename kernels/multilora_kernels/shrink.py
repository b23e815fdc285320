"""Shrink, the first half of SGMV: h = x · A, each row with the A of its own adapter.

    h[t, p, s, j] = Σ_d x[t, d] · a[page p of row t, s, j, d]        j = 0 … 15

Floor: the pages in use are read once, D · 16 · slices · in_features · itemsize bytes for D pages,
which is what decode costs; x and h are small beside it. Hence: one launch reads x once for all
fused slices (their rank rows are adjacent, one tensor-core operand), a program takes one tile of
rows, one page and one split of in_features, so that a few pages occupy all multiprocessors. Splits
are separate fp32 planes of h, added by the expand: no zero-fill, no atomics, bitwise repeatable.
Sources: Punica (arXiv 2310.18547), S-LoRA (arXiv 2311.03285).
"""

import torch

from multilora_kernels.openai_triton import next_power_of_2, tl, triton
from multilora_kernels.row_groups import own_pages
from multilora_kernels.segments import DECODE_TILE, PAGE_RANK, LoRASegments

BLOCK_K = 64
_SPLIT_WIDTH = 1024  # in_features per program at decode


@triton.jit
def shrink_kernel(
    x_ptr, a_ptr, h_ptr, tiles_ptr, pages_ptr,
    in_features, x_stride, a_page_stride, split_width, h_plane_stride, max_pages,
    RANKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, pages of a segment, splits). RANKS = slices * 16, BLOCK_R its power of two."""
    tile, page_index, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row_start = tl.load(tiles_ptr + tile * 4)
    row_count = tl.load(tiles_ptr + tile * 4 + 1)
    first = tl.load(tiles_ptr + tile * 4 + 2)
    end = tl.load(tiles_ptr + tile * 4 + 3)
    if (row_count == 0) | (first + page_index >= end):
        return
    page = tl.load(pages_ptr + first + page_index).to(tl.int64)
    m = tl.arange(0, BLOCK_M)
    r = tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    rows = (row_start + m).to(tl.int64)
    m_mask, r_mask = m < row_count, r < RANKS
    x_rows = x_ptr + rows[:, None] * x_stride
    a_rows = a_ptr + page * a_page_stride + r[None, :] * in_features
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    begin = split * split_width
    stop = min(begin + split_width, in_features)
    for k_start in range(begin, stop, BLOCK_K):
        columns = k_start + k
        k_mask = columns < stop
        x = tl.load(x_rows + columns[None, :], mask=m_mask[:, None] & k_mask[None, :], other=0.0)
        a = tl.load(a_rows + columns[:, None], mask=k_mask[:, None] & r_mask[None, :], other=0.0)
        acc += tl.dot(x, a, input_precision="ieee")
    h_rows = h_ptr + split * h_plane_stride + (rows[:, None] * max_pages + page_index) * RANKS
    tl.store(h_rows + r[None, :], acc, mask=m_mask[:, None] & r_mask[None, :])


def shrink_options(slices: int, tile_rows: int) -> dict[str, int]:
    """Constants and compile options of a launch."""
    ranks = slices * PAGE_RANK
    return {
        "RANKS": ranks, "BLOCK_M": tile_rows, "BLOCK_R": next_power_of_2(ranks), "BLOCK_K": BLOCK_K,
        "num_warps": 4, "num_stages": 3 if tile_rows == DECODE_TILE else 1,
    }  # fmt: skip


def shrink_gpu(x: torch.Tensor, a: torch.Tensor, segments: LoRASegments) -> torch.Tensor:
    """h as fp32 planes [splits, R, pages of a segment, slices * 16]; unowned pages are not set."""
    slices, in_features = a.shape[1], a.shape[3]
    decode = segments.tile_rows == DECODE_TILE
    splits = max(1, -(-in_features // _SPLIT_WIDTH)) if decode else 1
    width = -(-in_features // splits // BLOCK_K) * BLOCK_K
    splits = -(-in_features // width)
    pages = segments.max_pages_per_segment
    shape = (splits, segments.num_rows, pages, slices * PAGE_RANK)
    h = torch.empty(shape, dtype=torch.float32, device=x.device)
    shrink_kernel[(len(segments.tiles), pages, splits)](
        x, a, h, segments.tiles, segments.pages,
        in_features, x.stride(0), a.stride(0), width, h.stride(0), pages,
        **shrink_options(slices, segments.tile_rows),
    )  # fmt: skip
    return h


def shrink_cpu(x: torch.Tensor, a: torch.Tensor, segments: LoRASegments) -> list[torch.Tensor]:
    """For each group h [slices, R, P, 16], zero where the row does not own the page."""
    parts: list[torch.Tensor] = []
    for rows, pages, mask in segments.groups:
        own = own_pages(a, pages)
        h = x[rows] @ own.flatten(0, 2).T
        h = h.view(h.shape[0], *own.shape[:3]).permute(2, 0, 1, 3)
        if mask is not None:
            h = torch.mul(h, mask, out=torch.empty(h.shape, dtype=h.dtype))
        parts.append(h)
    return parts


def shrink_reference(
    x: torch.Tensor, a: torch.Tensor, segments: LoRASegments
) -> list[torch.Tensor]:
    """float64, one [rows, pages, slices, 16] per segment."""
    return [
        torch.einsum("td,psjd->tpsj", x[start : start + count].double(), a[list(pages)].double())
        for start, count, pages in segments.segments
    ]
