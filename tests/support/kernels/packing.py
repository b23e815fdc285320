"""Parts of adapters whose widths, ranks and strides have nothing in common."""

import numpy as np
import torch

from multilora_kernels.pack import COLUMNS
from multilora_kernels.segments import PAGE_RANK

PAGES = (3, 0, 4)  # of an adapter, in a pool of five
_SHAPES = (  # width, rank: alternately an A and a B
    (300, 20), (96, 16), (512, 0), (40, 5), (600, 48), (33, 20), (1, 1), (257, 0),
)  # fmt: skip
_SCALE = 2 / 3
_GAP = 3  # numbers between two rows, which nobody may touch
_POOL_PAGES = 5


def parts_case(
    of_file: torch.dtype, of_pool: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """source, pool, parts and widest as pack takes them; the pool is full of nines."""
    noise = torch.Generator().manual_seed(0)
    rows: list[list[int]] = []
    offset = target = 0
    for index, (width, rank) in enumerate(_SHAPES):
        is_b, stride = index % 2, PAGE_RANK * (width + _GAP)
        bits = int(np.float32(_SCALE if is_b else 1).view(np.int32))
        rows.append([offset, width, rank, is_b, target, stride, width + _GAP, bits])
        offset += width * rank
        target += _POOL_PAGES * stride
    assert len(rows[0]) == COLUMNS
    source = torch.randn(offset, generator=noise).to(of_file)
    pool = torch.full((target,), 9.0, dtype=of_pool)
    return source, pool, torch.tensor(rows), max(width for width, _ in _SHAPES)


def packed(source: torch.Tensor, pool: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """What pack makes of the pool, number by number as its definition says."""
    result = pool.clone()
    for offset, width, rank, is_b, target, page_stride, row_stride, _ in parts.tolist():
        factor = source[offset : offset + width * rank].float()
        lines = factor.view(width, rank).T * float(np.float32(_SCALE)) if is_b else factor
        lines = lines.reshape(rank, width)
        for line in range(len(PAGES) * PAGE_RANK):
            page, row = PAGES[line // PAGE_RANK], line % PAGE_RANK
            start = target + page * page_stride + row * row_stride
            result[start : start + width] = lines[line] if line < rank else 0
    return result
