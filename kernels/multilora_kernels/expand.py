"""Expand, the second half of SGMV: h · B, each row with the B of its own adapter.

    delta[t, c] = Σ_p Σ_j h[t, p, s, j] · b[page p of row t, j, c]     for column c of slice s

h as the shrink gives it, b [pages, 16, out_total]. The sum is either stored, for whoever reads
the projection to add (rows without an adapter are 0), or added to y [T, out_total] in place (rows
without an adapter are not touched).

Floor: the pages in use are read once, D · 16 · out_total · itemsize bytes for D pages, and the
result is written once. Hence: one launch for all fused slices; an item is one tile of rows and one
run of columns of one slice, whose pages are added up in fp32: no atomics, bitwise repeatable. An
item waits three times in a row (tile; page; then b and h) and loads only 16 rank rows of b, so
what fills the bandwidth is many small programs: 128 columns, 256 bytes of each rank row. Programs
take turns over the items, as many as the device says there are: a program for each of what the
tables have room for took 15 of 44 microseconds of a layer where 128 rows had one adapter.
Sources: Punica (arXiv 2310.18547), S-LoRA (arXiv 2311.03285).
"""

import torch

from multilora_kernels.lora_tile import load_tile, page_product
from multilora_kernels.openai_triton import num_programs, tl, triton
from multilora_kernels.products import add_product_each
from multilora_kernels.row_groups import own_pages
from multilora_kernels.segments import LoRASegments

_BLOCK_N = 128  # columns of an item
_PROGRAMS = 32  # on one multiprocessor: some waves, so that none waits long for the last


@triton.jit
def _expand_item(
    h_ptr, b_ptr, y_ptr, tiles_ptr, pairs_ptr, tile, block,
    size0, size1, size2, y_stride, b_page_stride, b_row_stride,
    RANKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """A block belongs to one slice: size0, size1, size2 columns."""
    row_start, row_count, first, end = load_tile(tiles_ptr, tile)
    blocks0, blocks1 = tl.cdiv(size0, BLOCK_N), tl.cdiv(size1, BLOCK_N)
    in1, in2 = block >= blocks0, block >= blocks0 + blocks1
    slice_index = in1.to(tl.int32) + in2.to(tl.int32)
    start = tl.where(in2, size0 + size1, tl.where(in1, size0, 0))
    size = tl.where(in2, size2, tl.where(in1, size1, size0))
    block -= tl.where(in2, blocks0 + blocks1, tl.where(in1, blocks0, 0))
    m = tl.arange(0, BLOCK_M)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    n_mask = n < size
    y_rows = y_ptr + (row_start + m).to(tl.int64)[:, None] * y_stride + start + n[None, :]
    mask = (m < row_count)[:, None] & n_mask[None, :]
    delta = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if ADD:
        delta += tl.load(y_rows, mask=mask, other=0.0)
    for pair in tl.range(first, end, num_stages=1):
        page = tl.load(pairs_ptr + pair * 4 + 2).to(tl.int64)
        delta += page_product(
            h_ptr + pair * (BLOCK_M * RANKS), b_ptr + page * b_page_stride, m, row_count,
            slice_index, start + n, n_mask, b_row_stride, RANKS,
        )  # fmt: skip
    tl.store(y_rows, delta.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def expand_kernel(
    h_ptr, b_ptr, y_ptr, counts_ptr, tiles_ptr, pairs_ptr,
    size0, size1, size2, y_stride, b_page_stride, b_row_stride,
    RANKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Grid: any number of programs. Of the tiles those with an adapter, or (not ADD) all."""
    blocks = tl.cdiv(size0, BLOCK_N) + tl.cdiv(size1, BLOCK_N) + tl.cdiv(size2, BLOCK_N)
    tiles = tl.load(counts_ptr + (1 if ADD else 2))
    for item in range(tl.program_id(0), tiles * blocks, tl.num_programs(0)):
        _expand_item(
            h_ptr, b_ptr, y_ptr, tiles_ptr, pairs_ptr, item // blocks, item % blocks,
            size0, size1, size2, y_stride, b_page_stride, b_row_stride,
            RANKS, BLOCK_M, BLOCK_N, ADD,
        )  # fmt: skip


def expand_gpu(
    h: torch.Tensor,
    b: torch.Tensor,
    slice_sizes: tuple[int, ...],
    segments: LoRASegments,
    y: torch.Tensor,
    add: bool,
) -> None:
    """`h` as shrink_gpu gives it; y [T, out_total] += h · B if `add`, else y = h · B."""
    if len(slice_sizes) > 3:
        raise ValueError(f"{len(slice_sizes)} slices; the kernel takes one to three")
    tiles = segments.update_tiles if add else len(segments.tiles)
    if not tiles:
        return
    items = tiles * sum(-(-size // _BLOCK_N) for size in slice_sizes)
    expand_kernel[(min(items, num_programs(y, _PROGRAMS)),)](
        h, b, y, segments.counts, segments.tiles, segments.pairs,
        *(*slice_sizes, 0, 0)[:3], y.stride(0), b.stride(0), b.stride(1),
        RANKS=h.shape[2], BLOCK_M=segments.tile_rows, BLOCK_N=_BLOCK_N, ADD=add,
        num_warps=4, num_stages=1,
    )  # fmt: skip


def expand_cpu(
    h: list[torch.Tensor],
    b: torch.Tensor,
    slice_sizes: tuple[int, ...],
    segments: LoRASegments,
    y: torch.Tensor,
) -> None:
    """`h` as shrink_cpu gives it."""
    for part, (count, rows, pages) in zip(h, segments.groups, strict=True):
        own = own_pages(b, pages).view(count, -1, b.shape[2])
        add_product_each(y[rows].unflatten(0, (count, -1)), part.flatten(3), own, slice_sizes)


def expand_reference(
    h: list[torch.Tensor],
    b: torch.Tensor,
    slice_sizes: tuple[int, ...],
    segments: LoRASegments,
    y: torch.Tensor,
) -> torch.Tensor:
    """float64 y + h · B; `h` as shrink_reference gives it, `y` stays as it is."""
    result = y.double().clone()
    for part, (start, count, pages) in zip(h, segments.segments, strict=True):
        columns = b[list(pages)].double().split(slice_sizes, dim=2)
        for index, out in enumerate(result[start : start + count].split(slice_sizes, dim=1)):
            out += torch.einsum("tpj,pjc->tc", part[:, :, index], columns[index])
    return result
