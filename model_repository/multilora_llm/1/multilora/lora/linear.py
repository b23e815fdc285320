"""Linear: a site's base weight plus the low-rank updates of the batch's adapters.

    y = x Wᵀ + bias + Σ over the pages of the row's adapter (x Aᵀ) B          LoRA, arXiv:2106.09685

x [T, in_features], y [T, out_features], both of the pool's dtype. Rows outside the segments get no
update. On a GPU the second half of the update may be left to the kernel that reads y next, and the
product that ends a block adds straight into the residual stream.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from multilora.base_model.sites import LoRASite
from multilora.lora.rank_pages import RankPagePool
from multilora_kernels.lora import LoRAUpdate, add_lora, expand, shrink
from multilora_kernels.openai_triton import uses_kernels
from multilora_kernels.segments import LoRASegments


class LoRAPlan(NamedTuple):
    """Which of the ways to compute the updates a forward pass takes, on a GPU.

    `fused`: qkv and gate_up are expanded inside the kernel that reads them (RoPE and KV write,
    SiLU), instead of by a launch of their own. `overlapped`: shrinks run on a stream of their own
    beside the base model's product. All plans give the same numbers up to rounding.
    """

    fused: bool = True
    overlapped: bool = False


PLANS = tuple(
    LoRAPlan(fused, overlapped) for fused in (True, False) for overlapped in (False, True)
)
DEFAULT_PLAN = PLANS[0]


@dataclass(frozen=True, eq=False)
class BatchLoRA:
    """The adapters of one batch: where their pages are, which rows are theirs, how to compute."""

    pages: RankPagePool
    segments: LoRASegments
    plan: LoRAPlan

    def shrink(self, x: torch.Tensor, site: LoRASite) -> LoRAUpdate:
        """The first half of the update: h = x Aᵀ."""
        a, b = self.pages.a[site.name], self.pages.b[site.name]
        return shrink(x, a, b, site.slice_sizes, self.segments)

    def add(self, y: torch.Tensor, x: torch.Tensor, site: LoRASite) -> None:
        """Both halves: y += (x Aᵀ) B."""
        a, b = self.pages.a[site.name], self.pages.b[site.name]
        add_lora(y, x, a, b, site.slice_sizes, self.segments)


class BaseWeight(Protocol):
    """A base weight in whatever form; see DenseWeight."""

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """x Wᵀ + bias."""
        ...

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """residual += x Wᵀ + bias."""
        ...


class Projection(NamedTuple):
    """y, and what its reader must still add to it."""

    y: torch.Tensor
    update: LoRAUpdate | None


@dataclass(frozen=True, eq=False)
class Linear:
    """The product at a site, with the batch's adapters."""

    site: LoRASite
    weight: BaseWeight

    def project(self, x: torch.Tensor, lora: BatchLoRA | None) -> Projection:
        """y, for a site whose reader can add the update itself (qkv, gate_up)."""
        if lora is None:
            return Projection(self.weight.multiply(x), None)
        if not uses_kernels(x):
            y = self.weight.multiply(x)
            lora.add(y, x, self.site)
            return Projection(y, None)
        with _Shrink(x, lora, self.site) as shrunk:
            y = self.weight.multiply(x)
        if lora.plan.fused:
            return Projection(y, shrunk.update)
        expand(shrunk.update, y)
        return Projection(y, None)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor, lora: BatchLoRA | None) -> None:
        """residual [T, out_features] += y, for a site that ends a block (o, down)."""
        if not uses_kernels(x):
            y = self.weight.multiply(x)
            if lora is not None:
                lora.add(y, x, self.site)
            residual += y
        elif lora is None:
            self.weight.add_to(residual, x)
        else:
            with _Shrink(x, lora, self.site) as shrunk:
                self.weight.add_to(residual, x)
            expand(shrunk.update, residual)


class _Shrink:
    """Computes the first half of the update before or, on a stream of its own, beside what stands
    in the `with` block; `update` may be used after it.

    x and h need no record_stream: both streams have met again before either can be freed.
    """

    def __init__(self, x: torch.Tensor, lora: BatchLoRA, site: LoRASite) -> None:
        self._side = _side_stream(x.device) if lora.plan.overlapped and x.is_cuda else None
        if self._side is None:
            self.update = lora.shrink(x, site)
            return
        self._side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(self._side):
            self.update = lora.shrink(x, site)

    def __enter__(self) -> "_Shrink":
        return self

    def __exit__(self, *_: object) -> None:
        if self._side is not None:
            torch.cuda.current_stream(self._side.device).wait_stream(self._side)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
