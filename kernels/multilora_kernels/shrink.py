"""Shrink, the first half of SGMV: h = x · A, each row with the A of its own adapter.

    h[t, p, s, j] = Σ_d x[t, d] · a[page p of row t, s, j, d]        j = 0 … 15

x [T, in], a [pages, slices, 16, in] → h [max_pairs, tile_rows, slices · 16] of their dtype, by
(tile, page) pair, rounded once, as PEFT rounds it.

Floor: the pages in use are read once, D · 16 · slices · in_features · itemsize bytes for D pages,
which is what decode costs; x and h are small beside it. At prefill x is read once for each page.
Hence: one launch reads x once for all fused slices, whose rank rows are adjacent: one tensor-core
operand. Splits of in_features let the pages of a few adapters keep all multiprocessors busy. Each
writes a partial sum of its own, and whichever is the last of a pair to arrive adds them up, in
their order: bitwise repeatable, and who expands h reads 2 bytes for what were splits · 4. The
count of those that arrived stands in the table of pairs and is 0 again after a launch. Programs are
as many as are resident at once and take turns over the items (pair, split), as many as the device
says there are, so tables with room for much larger batches cost nothing. What a program loads
lies along in_features, 256 bytes or more of each rank row at decode, and three such loads are on
their way in each of the resident programs, which is what hides the latency of memory.
Sources: Punica (arXiv 2310.18547), S-LoRA (arXiv 2311.03285), stream-K (arXiv 2301.03598).
"""

from typing import NamedTuple

import torch

from multilora_kernels.openai_triton import next_power_of_2, num_programs, tl, triton
from multilora_kernels.products import linear_each
from multilora_kernels.row_groups import own_pages
from multilora_kernels.segments import DECODE_TILE, PAGE_RANK, LoRASegments


@triton.jit
def _last_arrived(arrived_ptr, splits):
    """Whether all other splits of the pair have stored theirs; the count then starts anew."""
    tl.debug_barrier()  # what all threads of this program stored comes before its arrival
    last = tl.atomic_add(arrived_ptr, 1, sem="acq_rel") == splits - 1
    if last:
        tl.store(arrived_ptr, 0)
    return last


@triton.jit
def _sum_of_splits(
    planes_ptr, at, mask, splits, PLANE: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """fp32 [BLOCK_M, BLOCK_R]; GROUP planes are one load, so that they are on their way together.

    They come from the L2 cache, past that of the multiprocessor, which may hold older ones.
    """
    total = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for first in range(0, splits, GROUP):
        plane = first + tl.arange(0, GROUP)[:, None, None]
        planes = planes_ptr + plane * PLANE + at[None, :, :]
        part = tl.load(planes, (plane < splits) & mask[None, :, :], 0.0, cache_modifier=".cg")
        total += tl.sum(part, axis=0)
    return total


@triton.jit(do_not_specialize=["splits"])
def shrink_kernel(
    x_ptr, a_ptr, parts_ptr, h_ptr, counts_ptr, pairs_ptr,
    in_features, x_stride, a_page_stride, split_width, splits,
    RANKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Grid: any number of programs. RANKS = slices * 16, BLOCK_R its power of two."""
    PLANE: tl.constexpr = BLOCK_M * RANKS
    m = tl.arange(0, BLOCK_M)
    r = tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    r_mask = r < RANKS
    num_items = tl.load(counts_ptr) * splits
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        pair, split = item // splits, item % splits
        row_start = tl.load(pairs_ptr + pair * 4)
        m_mask = m < tl.load(pairs_ptr + pair * 4 + 1)
        page = tl.load(pairs_ptr + pair * 4 + 2).to(tl.int64)
        x_rows = x_ptr + (row_start + m).to(tl.int64)[:, None] * x_stride
        a_rows = a_ptr + page * a_page_stride + r[None, :] * in_features
        acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
        begin = split * split_width
        for k_start in range(begin, min(begin + split_width, in_features), BLOCK_K):
            columns = k_start + k
            x_mask, a_mask = m_mask[:, None], r_mask[None, :]
            if not EVEN_K:
                x_mask = x_mask & (columns < in_features)[None, :]
                a_mask = a_mask & (columns < in_features)[:, None]
            x = tl.load(x_rows + columns[None, :], mask=x_mask, other=0.0)
            a = tl.load(a_rows + columns[:, None], mask=a_mask, other=0.0)
            acc += tl.dot(x, a, input_precision="ieee")
        at = m[:, None] * RANKS + r[None, :]
        mask = m_mask[:, None] & r_mask[None, :]
        last = splits == 1
        if splits > 1:
            planes_ptr = parts_ptr + pair * splits * PLANE
            tl.store(planes_ptr + split * PLANE + at, acc, mask=mask)
            last = _last_arrived(pairs_ptr + pair * 4 + 3, splits)
            if last:
                acc = _sum_of_splits(planes_ptr, at, mask, splits, PLANE, GROUP, BLOCK_M, BLOCK_R)
        if last:
            tl.store(h_ptr + pair * PLANE + at, acc.to(h_ptr.dtype.element_ty), mask=mask)


class ShrinkPlan(NamedTuple):
    """How in_features is cut, and how many programs are resident on one multiprocessor."""

    block_k: int
    split_width: int
    splits: int
    resident: int
    group: int  # planes of partial sums that one load brings


def shrink_plan(x: torch.Tensor, ranks: int, segments: LoRASegments) -> ShrinkPlan:
    """Follows from shapes alone: a captured CUDA graph keeps it for all mixes.

    Splits of about 512 columns, at most 8; at prefill 2 once the pairs alone fill the device. More
    are slower, whatever the number of pairs: what the last of a pair has to add up comes to more
    than the others save. A decode program has 24 to 36 KB of A on its way, so that one adapter
    alone is no slower than its latency: few rank rows, hence longer runs.
    """
    in_features, itemsize = x.shape[1], x.element_size()
    if segments.tile_rows == DECODE_TILE:
        most, row_bytes, resident, group = 8, 512 if ranks <= 32 else 256, 3, 4
    else:
        most = 8 if len(segments.pairs) < num_programs(x, 1) else 2
        row_bytes, resident, group = 128, 2, 2
    block_k = row_bytes // itemsize
    splits = min(most, -(-in_features // 512))
    split_width = -(-in_features // splits // block_k) * block_k
    return ShrinkPlan(block_k, split_width, -(-in_features // split_width), resident, group)


def shrink_gpu(x: torch.Tensor, a: torch.Tensor, segments: LoRASegments) -> torch.Tensor:
    """h; what belongs to no real row of a pair is not set."""
    ranks, in_features, max_pairs = a.shape[1] * PAGE_RANK, a.shape[3], len(segments.pairs)
    plan = shrink_plan(x, ranks, segments)
    h = torch.empty(max_pairs, segments.tile_rows, ranks, dtype=x.dtype, device=x.device)
    if max_pairs:
        planes = (max_pairs * plan.splits, segments.tile_rows, ranks)
        parts = torch.empty(planes, dtype=torch.float32, device=x.device)
        programs = min(num_programs(x, plan.resident), max_pairs * plan.splits)
        shrink_kernel[(programs,)](
            x, a, parts, h, segments.counts, segments.pairs,
            in_features, x.stride(0), a.stride(0), plan.split_width, plan.splits,
            RANKS=ranks, BLOCK_M=segments.tile_rows, BLOCK_R=next_power_of_2(ranks),
            BLOCK_K=plan.block_k, GROUP=plan.group, EVEN_K=in_features % plan.block_k == 0,
            num_warps=4, num_stages=4,
        )  # fmt: skip
    return h


def shrink_cpu(x: torch.Tensor, a: torch.Tensor, segments: LoRASegments) -> list[torch.Tensor]:
    """For each group h [slices, S, R, P, 16]: of short segments float32, else of the dtype of x."""
    parts: list[torch.Tensor] = []
    for count, rows, pages in segments.groups:
        own = own_pages(a, pages)
        h = linear_each(x[rows].unflatten(0, (count, -1)), own.view(count, -1, own.shape[3]))
        parts.append(h.unflatten(2, (-1, *own.shape[1:3])).permute(3, 0, 1, 2, 4))
    return parts


def shrink_reference(
    x: torch.Tensor, a: torch.Tensor, segments: LoRASegments
) -> list[torch.Tensor]:
    """float64, one [rows, pages, slices, 16] per segment."""
    return [
        torch.einsum("td,psjd->tpsj", x[start : start + count].double(), a[list(pages)].double())
        for start, count, pages in segments.segments
    ]
