"""Factors of an adapter, as its files hold them, packed into the rank pages of a pool.

A part is one factor of one module: A [rank, width] or B [width, rank]. Rank r of a part goes to
row r % 16 of page r // 16 of those that the adapter has:

    pool[target + page · page_stride + (r % 16) · row_stride + x] = A[r, x]  or  scale · B[x, r]

for x < width, computed in float32 and rounded once; rows of the pages beyond the part's rank become
zeros, all of them where the adapter lacks the part (rank 0). Floor: the bytes of the factors read,
those of the pages written. Hence one program for 16 ranks and a run of columns of one part, which
turns a B around in registers.
"""

from collections.abc import Sequence

import torch

from multilora_kernels.openai_triton import tl, triton, uses_kernels
from multilora_kernels.segments import PAGE_RANK

COLUMNS = 8  # of a part: offset, width, rank, is B, target, page stride, row stride, scale
_BLOCK = 256  # columns of a program


@triton.jit(do_not_specialize=["page", "index"])
def pack_kernel(
    source_ptr, pool_ptr, parts_ptr, page, index,
    BLOCK: tl.constexpr, PAGE_RANK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (parts, column blocks): ranks from index · PAGE_RANK on, into `page`."""
    part_ptr = parts_ptr + tl.program_id(0) * COLUMNS
    width = tl.load(part_ptr + 1)
    start = tl.program_id(1) * BLOCK
    if start >= width:
        return
    source_ptr += tl.load(part_ptr)
    rank = tl.load(part_ptr + 2)
    line = tl.arange(0, PAGE_RANK)[:, None]
    ranks = index * PAGE_RANK + line
    columns = start + tl.arange(0, BLOCK)[None, :]
    mask = (ranks < rank) & (columns < width)
    if tl.load(part_ptr + 3) == 0:
        tile = tl.load(source_ptr + ranks * width + columns, mask=mask, other=0.0)
    else:
        tile = tl.load(source_ptr + columns * rank + ranks, mask=mask, other=0.0)
    scale = tl.load(part_ptr + 7).to(tl.int32).to(tl.float32, bitcast=True)
    target_ptr = pool_ptr + tl.load(part_ptr + 4) + page * tl.load(part_ptr + 5)
    target = target_ptr + line * tl.load(part_ptr + 6) + columns
    tile = (tile.to(tl.float32) * scale).to(pool_ptr.dtype.element_ty)
    tl.store(target, tile, mask=columns < width)


def pack_gpu(
    source: torch.Tensor, pool: torch.Tensor, parts: torch.Tensor, widest: int, pages: Sequence[int]
) -> None:
    """See pack."""
    grid = (len(parts), -(-widest // _BLOCK))
    for index, page in enumerate(pages):
        pack_kernel[grid](
            source, pool, parts, page, index, BLOCK=_BLOCK, PAGE_RANK=PAGE_RANK, COLUMNS=COLUMNS
        )


def pack_cpu(
    source: torch.Tensor, pool: torch.Tensor, parts: torch.Tensor, pages: Sequence[int]
) -> None:
    """See pack."""
    scales = parts[:, -1].int().view(torch.float32).tolist()
    here = source.storage_offset()
    # As few operations as there can be: at each one the engine's thread may take the interpreter.
    for part, scale in zip(parts.tolist(), scales, strict=True):
        offset, width, rank, is_b, target, page_stride, row_stride, _ = part
        strides = (1, rank) if is_b else (width, 1)
        for index, page in enumerate(pages):
            first, start = index * PAGE_RANK, target + page * page_stride
            count = min(PAGE_RANK, max(0, rank - first))
            if count < PAGE_RANK:
                rest = (PAGE_RANK - count, width)
                pool.as_strided(rest, (row_stride, 1), start + count * row_stride).zero_()
            if not count:
                continue
            lines = pool.as_strided((count, width), (row_stride, 1), start)
            own = source.as_strided((count, width), strides, here + offset + first * strides[0])
            if not is_b:
                lines.copy_(own)
            else:
                torch.mul(own.float(), scale, out=lines)


def pack(
    source: torch.Tensor, pool: torch.Tensor, parts: torch.Tensor, widest: int, pages: Sequence[int]
) -> None:
    """Write parts, rows of int64 [parts, COLUMNS], whose factors stand in `source`, into `pages`.

    `source` and `pool` are flat, `parts` lies where they do; offsets, targets and strides count
    their numbers, a scale is the bits of a float32. `widest` is the largest width.
    """
    if uses_kernels(pool):
        pack_gpu(source, pool, parts, widest, pages)
    else:
        pack_cpu(source, pool, parts, pages)
