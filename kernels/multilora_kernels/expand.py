"""Expand, the second half of SGMV: y += h · B, each row with the B of its own adapter.

    y[t, c] += Σ_p Σ_j h[t, p, s, j] · b[page p of row t, j, c]        for column c of slice s

Base rows are not touched. Floor: the pages in use are read once, D · 16 · out_total · itemsize
bytes for D pages, and y is read and written once. Hence: one launch for all fused slices; a program
owns one tile of rows and one run of columns of one slice, adds up the splits of h and all pages of
its segment in fp32, and touches y once: no atomics, bitwise repeatable.
Sources: Punica (arXiv 2310.18547), S-LoRA (arXiv 2311.03285).
"""

import torch

from multilora_kernels.openai_triton import tl, triton
from multilora_kernels.row_groups import own_pages
from multilora_kernels.segments import LoRASegments

BLOCK_N = 128


@triton.jit
def expand_kernel(
    h_ptr, b_ptr, y_ptr, tiles_ptr, pages_ptr,
    size0, size1, size2, y_stride, b_page_stride, b_row_stride, h_plane_stride, max_pages,
    RANKS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, column blocks). A block belongs to one slice: size0, size1, size2 columns."""
    tile, block = tl.program_id(0), tl.program_id(1)
    row_start = tl.load(tiles_ptr + tile * 4)
    row_count = tl.load(tiles_ptr + tile * 4 + 1)
    first = tl.load(tiles_ptr + tile * 4 + 2)
    end = tl.load(tiles_ptr + tile * 4 + 3)
    if row_count == 0:
        return
    blocks0, blocks1 = tl.cdiv(size0, BLOCK_N), tl.cdiv(size1, BLOCK_N)
    in1, in2 = block >= blocks0, block >= blocks0 + blocks1
    slice_index = in1.to(tl.int32) + in2.to(tl.int32)
    start = tl.where(in2, size0 + size1, tl.where(in1, size0, 0))
    size = tl.where(in2, size2, tl.where(in1, size1, size0))
    block -= tl.where(in2, blocks0 + blocks1, tl.where(in1, blocks0, 0))
    m = tl.arange(0, BLOCK_M)
    j = tl.arange(0, 16)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = (row_start + m).to(tl.int64)
    m_mask, n_mask = m < row_count, n < size
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for index in range(0, end - first):
        page = tl.load(pages_ptr + first + index).to(tl.int64)
        h_tile = h_ptr + (rows[:, None] * max_pages + index) * RANKS + slice_index * 16 + j[None, :]
        h = tl.zeros((BLOCK_M, 16), dtype=tl.float32)
        for split in tl.static_range(SPLITS):
            h += tl.load(h_tile + split * h_plane_stride, mask=m_mask[:, None], other=0.0)
        b_tile = b_ptr + page * b_page_stride + j[:, None] * b_row_stride + start + n[None, :]
        b = tl.load(b_tile, mask=n_mask[None, :], other=0.0)
        acc += tl.dot(h.to(b.dtype), b, input_precision="ieee")
    y_tile = y_ptr + rows[:, None] * y_stride + start + n[None, :]
    mask = m_mask[:, None] & n_mask[None, :]
    y = tl.load(y_tile, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_tile, (y + acc).to(y_ptr.dtype.element_ty), mask=mask)


def expand_options(ranks: int, splits: int, tile_rows: int) -> dict[str, int]:
    """Constants and compile options of a launch.

    One stage: h is a register operand, and ptxas before 13.3 may overwrite the registers of a
    wgmma still in flight, as pipelining leaves it at 64 rows.
    """
    return {
        "RANKS": ranks, "SPLITS": splits, "BLOCK_M": tile_rows, "BLOCK_N": BLOCK_N,
        "num_warps": 4, "num_stages": 1,
    }  # fmt: skip


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
    sizes = (*slice_sizes, 0, 0)[:3]
    blocks = sum(-(-size // BLOCK_N) for size in sizes)
    expand_kernel[(len(segments.tiles), blocks)](
        h, b, y, segments.tiles, segments.pages,
        *sizes, y.stride(0), b.stride(0), b.stride(1), h.stride(0), h.shape[2],
        **expand_options(h.shape[3], h.shape[0], segments.tile_rows),
    )  # fmt: skip


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
