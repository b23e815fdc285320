"""Device functions over the tables of LoRASegments, for the kernels that multiply h with B.

    delta[m, c] = Σ_pairs Σ_j h[pair, m, slice · 16 + j] · b[page of pair, j, c]

The products are added up in fp32. Rows of h past the tile's are never read.
Source: Punica (arXiv 2310.18547).
"""

from multilora_kernels.openai_triton import tl, triton


@triton.jit
def load_tile(tiles_ptr, tile):
    """row_start, row_count, first_pair, end_pair of one entry; no rows: it is padding."""
    entry = tiles_ptr + tile * 4
    return tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)


@triton.jit
def page_product(
    h_pair, b_page, m, row_count, slice_index, columns, column_mask, b_row_stride,
    RANKS: tl.constexpr,
):  # fmt: skip
    """fp32 [len(m), len(columns)] of one pair; `columns` are absolute columns of b."""
    j = tl.arange(0, 16)
    b_tile = b_page + j[:, None] * b_row_stride + columns[None, :]
    b = tl.load(b_tile, mask=column_mask[None, :], other=0.0)
    h_tile = h_pair + m[:, None] * RANKS + slice_index * 16 + j[None, :]
    h = tl.load(h_tile, mask=(m < row_count)[:, None], other=0.0)
    return tl.dot(h, b, input_precision="ieee")
