"""Expand, the second half of SGMV: y += h · B, each row with the B of its own adapter.

    y[t, c] += Σ_p Σ_j h[t, p, s, j] · b[page p of row t, j, c]        for column c of slice s

h as the shrink gives it, b [pages, 16, out_total], y [T, out_total]. Base rows are not touched.

Floor: the pages in use are read once, D · 16 · out_total · itemsize bytes for D pages, and the
rows of y with an adapter are read and written once. Hence: one launch for all fused slices; a
program owns one tile of rows and one run of columns of one slice, adds up the splits of h and all
pages of its tile in fp32, and touches y once: no atomics, bitwise repeatable. A program waits
three times in a row (tile; page; then b and h, y since the start) and loads only 16 rank rows of
b, so what fills the bandwidth is many small programs: 128 columns, 256 bytes of each rank row. What
registers allow to be resident on a multiprocessor is 1024 columns whatever the width, 32 KB of b
on their way; so where narrow programs come in several waves, 256 columns at decode: half as many
programs to start, and the splits of h are read from the L2 cache half as often.
Sources: Punica (arXiv 2310.18547), S-LoRA (arXiv 2311.03285).
"""

import torch

from multilora_kernels.lora_tile import load_tile, lora_delta
from multilora_kernels.openai_triton import num_programs, tl, triton
from multilora_kernels.row_groups import own_pages
from multilora_kernels.segments import DECODE_TILE, LoRASegments

_NARROW, _WIDE = 128, 256  # columns of a program
_RESIDENT = 8  # narrow programs at decode on one multiprocessor: about 64 registers a thread


@triton.jit
def expand_kernel(
    h_ptr, b_ptr, y_ptr, tiles_ptr, pairs_ptr,
    size0, size1, size2, y_stride, b_page_stride, b_row_stride, h_plane_stride,
    RANKS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, column blocks). A block belongs to one slice: size0, size1, size2 columns."""
    tile, block = tl.program_id(0), tl.program_id(1)
    row_start, row_count, first, end = load_tile(tiles_ptr, tile)
    if first == end:
        return
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
    y = tl.load(y_rows, mask=mask, other=0.0)
    delta = lora_delta(
        h_ptr, b_ptr, pairs_ptr, first, end, m, row_count, slice_index, start + n, n_mask,
        b_page_stride, b_row_stride, h_plane_stride, RANKS, SPLITS, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    tl.store(y_rows, (y + delta).to(y_ptr.dtype.element_ty), mask=mask)


def expand_gpu(
    h: torch.Tensor,
    b: torch.Tensor,
    slice_sizes: tuple[int, ...],
    segments: LoRASegments,
    y: torch.Tensor,
) -> None:
    """`h` as shrink_gpu gives it. h is rounded to the dtype of b, as PEFT does."""
    if len(slice_sizes) > 3:
        raise ValueError(f"{len(slice_sizes)} slices; the kernel takes one to three")
    if not segments.update_tiles or not len(segments.pairs):
        return
    decode = segments.tile_rows == DECODE_TILE
    programs = segments.update_tiles * _blocks(slice_sizes, _NARROW)
    width = _WIDE if decode and programs > num_programs(y, _RESIDENT) else _NARROW
    expand_kernel[(segments.update_tiles, _blocks(slice_sizes, width))](
        h, b, y, segments.tiles, segments.pairs,
        *(*slice_sizes, 0, 0)[:3], y.stride(0), b.stride(0), b.stride(1), h.stride(0),
        RANKS=h.shape[3], SPLITS=h.shape[0], BLOCK_M=segments.tile_rows, BLOCK_N=width,
        num_warps=4 if decode and width == _NARROW else 8, num_stages=1,
    )  # fmt: skip


def _blocks(slice_sizes: tuple[int, ...], width: int) -> int:
    return sum(-(-size // width) for size in slice_sizes)


def expand_cpu(
    h: list[torch.Tensor],
    b: torch.Tensor,
    slice_sizes: tuple[int, ...],
    segments: LoRASegments,
    y: torch.Tensor,
) -> None:
    """`h` as shrink_cpu gives it."""
    for part, (rows, pages, _) in zip(h, segments.groups, strict=True):
        columns = own_pages(b, pages).flatten(0, 1).split(slice_sizes, dim=1)
        out = y[rows].split(slice_sizes, dim=1)
        for own_h, own_b, own_y in zip(part, columns, out, strict=True):
            own_y.addmm_(own_h.flatten(1), own_b)


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
