"""How a kernel that consumes a projection adds the adapters' update to it on the fly.

One kernel is the fused consumer and the plain one, by the constant LORA. Fused, it walks over the
tiles of the segments, so that all rows of a tile have one adapter; plain, over tiles of 16 rows.

A consumer reads its columns in two runs (gate and up, the halves of a head), so it needs two
deltas as lora_tile defines them. two_deltas asks for the loads of both before it needs one: at
decode, where a program has little else to load, that is twice the bytes in flight.
"""

from typing import Any, NamedTuple

from multilora_kernels.lora import LoRAUpdate
from multilora_kernels.lora_tile import load_tile, sum_of_splits
from multilora_kernels.openai_triton import tl, triton
from multilora_kernels.segments import DECODE_TILE


@triton.jit
def row_tile(tiles_ptr, tile, num_rows, LORA: tl.constexpr, BLOCK_M: tl.constexpr):
    """row_start, row_count, and the first and end pair (none without LORA)."""
    if LORA:
        row_start, row_count, first, end = load_tile(tiles_ptr, tile)
    else:
        row_start, first, end = tile * BLOCK_M, 0, 0
        row_count = min(BLOCK_M, num_rows - row_start)
    return row_start, row_count, first, end


@triton.jit
def two_deltas(
    h_ptr, b_ptr, pairs_ptr, first, end, m, row_count, slice1, slice2, columns1, columns2,
    column_mask, b_page_stride, b_row_stride, h_plane_stride, ONE_SLICE: tl.constexpr,
    RANKS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """lora_delta of two runs of columns of b, in two slices or (ONE_SLICE) in the same."""
    j = tl.arange(0, 16)
    row_mask = m < row_count
    h_rows = h_ptr + m[:, None] * RANKS + j[None, :]
    b_rows = b_ptr + j[:, None] * b_row_stride
    delta1 = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    delta2 = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for pair in tl.range(first, end, num_stages=1):  # one stage: see lora_delta
        b_page = b_rows + tl.load(pairs_ptr + pair * 4 + 2).to(tl.int64) * b_page_stride
        b1 = tl.load(b_page + columns1[None, :], mask=column_mask[None, :], other=0.0)
        b2 = tl.load(b_page + columns2[None, :], mask=column_mask[None, :], other=0.0)
        h_pair = h_rows + pair * (BLOCK_M * RANKS)
        h1 = sum_of_splits(h_pair + slice1 * 16, row_mask, h_plane_stride, SPLITS)
        h2 = h1
        if not ONE_SLICE:
            h2 = sum_of_splits(h_pair + slice2 * 16, row_mask, h_plane_stride, SPLITS)
        delta1 += tl.dot(h1.to(b1.dtype), b1, input_precision="ieee")
        delta2 += tl.dot(h2.to(b2.dtype), b2, input_precision="ieee")
    return delta1, delta2


class UpdateLaunch(NamedTuple):
    """What a consumer passes on to its kernel."""

    num_tiles: int
    # num_rows, h, b, tiles, pairs, and the strides of b's pages and rows and of h's planes
    arguments: tuple[Any, ...]
    constants: dict[str, int]  # LORA, RANKS, SPLITS, BLOCK_M


def update_launch(update: LoRAUpdate | None, num_rows: int) -> UpdateLaunch:
    """For a projection of `num_rows` rows."""
    if update is None:
        constants = {"LORA": False, "RANKS": 0, "SPLITS": 0, "BLOCK_M": DECODE_TILE}
        arguments = (num_rows, None, None, None, None, 0, 0, 0)
        return UpdateLaunch(-(-num_rows // DECODE_TILE), arguments, constants)
    h, b, _, segments = update
    return UpdateLaunch(
        len(segments.tiles),
        (num_rows, h, b, segments.tiles, segments.pairs, b.stride(0), b.stride(1), h.stride(0)),
        {"LORA": True, "RANKS": h.shape[3], "SPLITS": h.shape[0], "BLOCK_M": segments.tile_rows},
    )
