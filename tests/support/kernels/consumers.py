"""Inputs for the kernels that consume a projection: the rows, and the update still to be added."""

from typing import Any, NamedTuple

import pytest
import torch

from multilora_kernels.lora import LoRAUpdate, expand, shrink
from multilora_kernels.segments import LaunchBounds
from support.kernels.cases import LoRACase, lora_case

NAN = float("nan")
MIXES = {  # rows of each adapter, then base rows
    "distinct": ([1, 1, 1], 2),
    "uniform": ([2, 2], 0),
    "skewed": ([17, 2, 0, 1], 1),
    "identical": ([19], 0),
    "base only": ([], 3),
}
RANKS = [8, 40, 16]


def fill_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Floats that nobody has written are NaN."""
    real = torch.empty

    def empty(*size: int, **keywords: Any) -> torch.Tensor:
        memory = real(*size, **keywords)
        return memory.fill_(NAN) if memory.is_floating_point() else memory

    monkeypatch.setattr(torch, "empty", empty)


class ConsumerCase(NamedTuple):
    lora: LoRACase
    y: torch.Tensor  # [T, out_total], without the update; its rows lie apart, with NaN between them
    update: LoRAUpdate
    delta: torch.Tensor  # the update expanded
    exact: torch.Tensor  # float64 [T, out_total], with the update


def consumer_case(
    mix: tuple[list[int], int],
    slice_sizes: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    bounds: LaunchBounds | None = None,
) -> ConsumerCase:
    """Pages that no adapter of the batch owns are NaN."""
    row_counts, base_rows = mix
    case = lora_case(row_counts, RANKS, slice_sizes, 600, dtype, device, base_rows, spread=2)
    used = {page for pages in case.pages for page in pages}
    unused = [page for page in range(len(case.a)) if page not in used]
    case.a[unused], case.b[unused] = NAN, NAN
    update = shrink(case.x, case.a, case.b, slice_sizes, case.segments(bounds))
    wide = torch.full((len(case.y), sum(slice_sizes) + 16), NAN, dtype=dtype, device=device)
    y = wide[:, : sum(slice_sizes)]
    y.copy_(case.y)
    return ConsumerCase(case, y, update, expand(update), _exact(case))


def _exact(case: LoRACase) -> torch.Tensor:
    y = case.y.double()
    start = 0
    for count, pages in zip(case.row_counts, case.pages, strict=True):
        rows = slice(start, start + count)
        a, b = case.a[list(pages)].double(), case.b[list(pages)].double()
        h = torch.einsum("td,psjd->spjt", case.x[rows].double(), a)
        for part, columns, out in zip(
            h, b.split(case.slice_sizes, dim=2), y[rows].split(case.slice_sizes, dim=1), strict=True
        ):
            out += torch.einsum("pjt,pjc->tc", part, columns)
        start += count
    return y


class RopeCase(NamedTuple):
    heads: tuple[int, int]  # query and KV heads
    rope: torch.Tensor  # [T, 2, head_dim]
    kv_slots: torch.Tensor  # int64 [T]; one in four is padding
    k_cache: torch.Tensor  # NaN
    v_cache: torch.Tensor  # NaN
    qk_norm: torch.Tensor | None


def rope_case(
    rows: int, heads: tuple[int, int], head_dim: int, qk_norm: bool, dtype: torch.dtype, device: str
) -> RopeCase:
    noise = torch.Generator().manual_seed(rows)
    angles = torch.rand(rows, head_dim // 2, generator=noise) * 100
    cos, sin = angles.cos(), angles.sin()
    rope = torch.stack((cos, cos, -sin, sin), dim=1).view(rows, 2, head_dim)
    blocks = -(-rows // 4) + 1
    slots = torch.randperm(blocks * 4, generator=noise)[:rows]
    slots[3::4] = -1
    norm = torch.randn(sum(heads), head_dim, generator=noise) if qk_norm else None
    k_cache, v_cache = (
        torch.full((blocks, 4, heads[1], head_dim), NAN, dtype=dtype, device=device)
        for _ in range(2)
    )
    return RopeCase(
        heads, rope.to(device, dtype), slots.to(device), k_cache, v_cache,
        None if norm is None else norm.to(device, dtype),
    )  # fmt: skip
