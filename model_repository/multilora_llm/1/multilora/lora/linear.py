"""A fused projection of the base model plus the low-rank updates of the batch's adapters.

    y = x Wᵀ + bias + Σ over the pages of the row's adapter (x Aᵀ) B          LoRA, arXiv:2106.09685

On a GPU the second half of the update may be left to the kernel that reads y next, and the product
that ends a block adds straight into the residual stream. x [T, in], weight [out_total, in], bias
[out_total] or None, y [T, out_total], all of the pool's dtype; `group` is a key of
PROJECTION_GROUPS. Rows outside the segments get no update.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from multilora.lora.adapter_pages import AdapterPages
from multilora.lora.plan import LoRAPlan
from multilora_kernels.lora import LoRAUpdate, add_lora, expand, shrink
from multilora_kernels.openai_triton import uses_kernels
from multilora_kernels.segments import LoRASegments


@dataclass(frozen=True, eq=False)
class BatchLoRA:
    """The adapters of one batch: where their pages are, which rows are theirs, how to compute."""

    pages: AdapterPages
    segments: LoRASegments
    plan: LoRAPlan

    def update(self, x: torch.Tensor, layer: int, group: str) -> LoRAUpdate:
        """The first half for one projection group: h = x Aᵀ."""
        a, b = self.pages.a[layer][group], self.pages.b[layer][group]
        return shrink(x, a, b, self.pages.slice_sizes[group], self.segments)

    def add(self, y: torch.Tensor, x: torch.Tensor, layer: int, group: str) -> None:
        """Both halves: y += (x Aᵀ) B."""
        a, b = self.pages.a[layer][group], self.pages.b[layer][group]
        add_lora(y, x, a, b, self.pages.slice_sizes[group], self.segments)


class Projection(NamedTuple):
    """y, and what its reader must still add to it."""

    y: torch.Tensor
    update: LoRAUpdate | None


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    lora: BatchLoRA | None,
    layer: int,
    group: str,
) -> Projection:
    """y of a group whose reader can add the update itself (qkv, gate_up)."""
    if lora is None:
        return Projection(F.linear(x, weight, bias), None)
    if not uses_kernels(x):
        y = F.linear(x, weight, bias)
        lora.add(y, x, layer, group)
        return Projection(y, None)
    with _Shrink(x, lora, layer, group) as shrunk:
        y = F.linear(x, weight, bias)
    if lora.plan.fused:
        return Projection(y, shrunk.update)
    expand(shrunk.update, y)
    return Projection(y, None)


def add_lora_linear(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    lora: BatchLoRA | None,
    layer: int,
    group: str,
) -> None:
    """residual [T, out] += y, for the groups that end a block (o, down)."""
    if not uses_kernels(x):
        y = F.linear(x, weight, bias)
        if lora is not None:
            lora.add(y, x, layer, group)
        residual += y
    elif lora is None:
        _add_product(residual, x, weight, bias)
    else:
        with _Shrink(x, lora, layer, group) as shrunk:
            _add_product(residual, x, weight, bias)
        expand(shrunk.update, residual)


def _add_product(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> None:
    residual.addmm_(x, weight.T)
    if bias is not None:
        residual += bias


class _Shrink:
    """Computes the first half of the update before or, on a stream of its own, beside what stands
    in the `with` block; `update` may be used after it.

    x and h need no record_stream: both streams have met again before either can be freed.
    """

    def __init__(self, x: torch.Tensor, lora: BatchLoRA, layer: int, group: str) -> None:
        self._side = _side_stream(x.device) if lora.plan.overlapped and x.is_cuda else None
        if self._side is None:
            self.update = lora.update(x, layer, group)
            return
        self._side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(self._side):
            self.update = lora.update(x, layer, group)

    def __enter__(self) -> "_Shrink":
        return self

    def __exit__(self, *_: object) -> None:
        if self._side is not None:
            torch.cuda.current_stream(self._side.device).wait_stream(self._side)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
