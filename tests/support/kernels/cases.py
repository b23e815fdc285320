"""Inputs for the kernel tests: punica's mixes of adapters, ranks, paged caches."""

import os
from dataclasses import dataclass

import pytest
import torch

from multilora_kernels.paged_prefill import QueryTiles
from multilora_kernels.segments import PAGE_RANK, LaunchBounds, LoRASegments

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"  # where GPU kernels run
# The interpreter computes bfloat16 wrongly, so that one is for GPUs.
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(), reason="no NVIDIA GPU, no interpreter"
    ),
]

MIXES = {  # rows of each adapter; what is missing to `rows` is base-only
    "distinct": [1] * 7,
    "uniform": [3] * 4,
    "skewed": [9, 4, 2, 1, 1],
    "identical": [13],
    "prefill": [37, 1, 20],
    "none": [],
    "with an empty one": [2, 0, 3],
}


@dataclass
class LoRACase:
    x: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    y: torch.Tensor
    slice_sizes: tuple[int, ...]
    row_counts: list[int]
    pages: list[tuple[int, ...]]

    def segments(self, bounds: LaunchBounds | None = None) -> LoRASegments:
        starts = [sum(self.row_counts[:i]) for i in range(len(self.row_counts))]
        return LoRASegments.from_lists(
            starts, self.row_counts, self.pages, len(self.x), self.x.device, self.x.dtype, bounds
        )


def lora_case(
    mix: list[int],
    ranks: list[int],
    slice_sizes: tuple[int, ...],
    in_features: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    base_rows: int = 3,
    spread: int = 1,
    seed: int = 0,
) -> LoRACase:
    """Adapter i has ranks[i % len]; its pages are random ones, `spread` times more than needed."""
    noise = torch.Generator().manual_seed(seed)
    need = [-(-ranks[i % len(ranks)] // PAGE_RANK) for i in range(len(mix))]
    total = max(1, sum(need)) * spread
    free = torch.randperm(total, generator=noise).tolist()
    pages = [tuple(free.pop() for _ in range(count)) for count in need]
    a = torch.randn(total, len(slice_sizes), PAGE_RANK, in_features, generator=noise)
    b = torch.randn(total, PAGE_RANK, sum(slice_sizes), generator=noise)
    for i, own in enumerate(pages):  # the tail of the last page is zero, as the pool keeps it
        tail = ranks[i % len(ranks)] - (len(own) - 1) * PAGE_RANK
        a[own[-1], :, tail:] = 0
        b[own[-1], tail:] = 0
    rows = sum(mix) + base_rows
    x = torch.randn(rows, in_features, generator=noise) / in_features**0.5
    y = torch.randn(rows, sum(slice_sizes), generator=noise)
    x, a, b, y = (part.to(device, dtype) for part in (x, a, b, y))
    return LoRACase(x, a, b, y, slice_sizes, mix, pages)


def lookup_case(
    mix: list[int],
    ranks: list[int],
    out_features: int,
    vocab: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    spread: int = 1,
) -> tuple[LoRACase, torch.Tensor]:
    """Of an embedding: token ids, and as `x` the one-hot rows that they stand for."""
    case = lora_case(mix, ranks, (out_features,), vocab, dtype, device, spread=spread)
    noise = torch.Generator().manual_seed(1)
    ids = torch.randint(vocab, (len(case.x),), generator=noise).to(device)
    case.x = torch.nn.functional.one_hot(ids, vocab).to(dtype)
    return case, ids


@dataclass
class AttentionCase:
    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    cu_seqlens_q: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    k: torch.Tensor  # of the new tokens [T, kv_heads, D], beside each other in one buffer
    v: torch.Tensor

    def tiles(self) -> QueryTiles:
        """The queries of sequences with several new tokens."""
        new, contexts = self.cu_seqlens_q.diff().tolist(), self.context_lens.tolist()
        return QueryTiles.of(new, contexts, self.q.shape[1], self.k_cache)


def attention_case(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    value_dim: int | None = None,
) -> AttentionCase:
    """`lengths` are (new, context) of each sequence, `heads` are (query, KV) heads, of V with
    `value_dim` (head_dim) numbers.

    What the caches hold outside of the sequences is NaN, and so is the block that the unused
    entries of the block tables name. `k` and `v` are in the caches too.
    """
    noise = torch.Generator().manual_seed(len(lengths))
    counts = [-(-context // block_size) for _, context in lengths]
    order = torch.randperm(sum(counts) + 2, generator=noise).tolist()
    tables = torch.full((len(lengths), max(counts) + 1), order.pop(), dtype=torch.int32)
    shape = (sum(counts) + 2, block_size, heads[1])
    k, v = (torch.full((*shape, n), float("nan")) for n in (head_dim, value_dim or head_dim))
    for row, (_, context) in enumerate(lengths):
        for start in range(0, context, block_size):
            block = tables[row, start // block_size] = order.pop()
            used = (block, slice(min(block_size, context - start)))
            for cache in (k, v):
                cache[used] = torch.randn(cache[used].shape, generator=noise)
    new = [count for count, _ in lengths]
    q = torch.randn(sum(new), heads[0] + 1, head_dim, generator=noise)[:, :-1]
    starts = torch.tensor([0, *new]).cumsum(0).to(torch.int32)
    contexts = torch.tensor([context for _, context in lengths], dtype=torch.int32)
    token = torch.cat([torch.arange(context - count, context) for count, context in lengths])
    own = tables[torch.arange(len(new)).repeat_interleave(torch.tensor(new)), token // block_size]
    rows = torch.cat([cache[own, token % block_size].flatten(1) for cache in (k, v)], dim=1)
    q, k, v, rows = (part.to(device, dtype) for part in (q, k, v, rows))
    new_k, new_v = rows.tensor_split((heads[1] * head_dim,), dim=1)
    return AttentionCase(
        q, k, v, starts.to(device), contexts.to(device), tables.to(device),
        new_k.unflatten(1, (heads[1], -1)), new_v.unflatten(1, (heads[1], -1)),
    )  # fmt: skip


def random_sinks(
    heads: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> torch.Tensor:
    """Some count for nothing, some for all that is seen."""
    noise = torch.Generator().manual_seed(heads)
    return (3 * torch.randn(heads, generator=noise)).to(device, dtype)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Largest error against the largest expected value."""
    scale = expected.abs().max().clamp(min=1e-3) if expected.numel() else torch.tensor(1.0)
    error = (actual.double().cpu() - expected.cpu()).abs().max() if expected.numel() else 0.0
    assert error <= TOLERANCE[dtype] * scale, f"error {error} of {scale}"
