"""Device functions over the tables of LoRASegments, for the expand and for kernels that add the
update to a projection while they read it.

    delta[m, c] = Σ_pairs (Σ_splits h[split, pair, m, slice · 16 + j]) · b[page of pair, j, c]

h is fp32 and is rounded to the dtype of b once its splits are added up, as PEFT rounds it; the
products are added up in fp32. Rows of h past the tile's are never read.
Source: Punica (arXiv 2310.18547).
"""

from multilora_kernels.openai_triton import tl, triton


@triton.jit
def load_tile(tiles_ptr, tile):
    """row_start, row_count, first_pair, end_pair of one entry; no rows: it is padding."""
    entry = tiles_ptr + tile * 4
    return tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)


@triton.jit
def sum_of_splits(h_rows, row_mask, h_plane_stride, SPLITS: tl.constexpr):
    """fp32 [len(row_mask), 16] of the pointers `h_rows`, over SPLITS planes, a power of two.

    All splits are one load: added one by one, each would pass through shared memory to the layout
    of the dot that follows.
    """
    split = tl.arange(0, SPLITS)
    planes = h_rows[None, :, :] + split[:, None, None] * h_plane_stride
    return tl.sum(tl.load(planes, mask=row_mask[None, :, None], other=0.0), axis=0)


@triton.jit
def lora_delta(
    h_ptr, b_ptr, pairs_ptr, first_pair, end_pair, m, row_count, slice_index, columns, column_mask,
    b_page_stride, b_row_stride, h_plane_stride,
    RANKS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """fp32 [BLOCK_M, BLOCK_N] for rows `m` of a tile of BLOCK_M rows.

    `columns` int32 [BLOCK_N] are absolute columns of b. Pages follow each other in a pipeline,
    unless the dot is a wgmma: the sum over splits is its register operand, and ptxas before 13.3
    may overwrite such registers while it is in flight.
    """
    STAGES: tl.constexpr = 1 if BLOCK_M >= 64 else 3
    j = tl.arange(0, 16)
    h_rows = h_ptr + m[:, None] * RANKS + slice_index * 16 + j[None, :]
    b_rows = b_ptr + j[:, None] * b_row_stride + columns[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for pair in tl.range(first_pair, end_pair, num_stages=STAGES):
        page = tl.load(pairs_ptr + pair * 4 + 2).to(tl.int64)
        b = tl.load(b_rows + page * b_page_stride, mask=column_mask[None, :], other=0.0)
        h_pair = h_rows + pair * (BLOCK_M * RANKS)
        h = sum_of_splits(h_pair, m < row_count, h_plane_stride, SPLITS)
        acc += tl.dot(h.to(b.dtype), b, input_precision="ieee")
    return acc
