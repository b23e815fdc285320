"""Linear: a site's base weight plus the low-rank updates of the batch's adapters.

    y = x Wᵀ + bias + Σ over the pages of the row's adapter (x Aᵀ) B          LoRA, arXiv:2106.09685

x [T, in_features], y [T, out_features], both of the pool's dtype. Rows outside the segments get no
update. On a GPU the product that ends a block adds straight into the residual stream, and the
update is computed beside the base model's product, on a stream of its own, to be added by the
kernel that reads y next. What that adds to a layer of Llama 3 8B (135 µs on an H200) where 32 rows
have 32 adapters: 35 µs, against 62 with the second half in the reader, and 71 on one stream.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from multilora.base_model.sites import LoRASite
from multilora.lora.rank_pages import RankPagePool
from multilora_kernels.lora import LoRAUpdate, add_lookup, add_lora, expand, shrink
from multilora_kernels.openai_triton import uses_kernels
from multilora_kernels.segments import PREFILL_TILE, LoRASegments


@dataclass(frozen=True, eq=False)
class BatchLoRA:
    """The adapters of one batch: where their pages are and which rows are theirs."""

    pages: RankPagePool
    segments: LoRASegments

    def shrink(self, x: torch.Tensor, site: LoRASite) -> LoRAUpdate:
        """The first half of the update: h = x Aᵀ."""
        a, b = self.pages.a[site.name], self.pages.b[site.name]
        return shrink(x, a, b, site.slice_sizes, self.segments)

    def add(self, y: torch.Tensor, x: torch.Tensor, site: LoRASite) -> None:
        """Both halves: y += (x Aᵀ) B. Of an embedding x is token ids, int64 [T]."""
        a, b = self.pages.a[site.name], self.pages.b[site.name]
        if site.takes_ids:
            add_lookup(y, x, a, b, self.segments)
        else:
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
    """y, and what its reader must still add to it, if anything: a tensor like y, or an update that
    it must expand."""

    y: torch.Tensor
    delta: torch.Tensor | None = None
    update: LoRAUpdate | None = None


@dataclass(frozen=True, eq=False)
class Linear:
    """The product at a site, with the batch's adapters."""

    site: LoRASite
    weight: BaseWeight

    def project(self, x: torch.Tensor, lora: BatchLoRA | None) -> Projection:
        """y, for a reader that adds a tensor (qkv)."""
        return self._project(x, lora, reader_expands=False)

    def project_wide(self, x: torch.Tensor, lora: BatchLoRA | None) -> Projection:
        """y, for a reader that can expand too (gate_up). Tall tiles leave it to that: of many rows
        so wide an update costs more to write and to read again than to compute."""
        tall = lora is not None and lora.segments.tile_rows == PREFILL_TILE
        return self._project(x, lora, reader_expands=tall)

    def add_to(
        self, residual: torch.Tensor, x: torch.Tensor, lora: BatchLoRA | None
    ) -> torch.Tensor | None:
        """residual [T, out_features] += y, for a site that ends a block (o, down). What the reader
        of `residual` must still add to it."""
        if not uses_kernels(x):
            y = self.weight.multiply(x)
            if lora is not None:
                lora.add(y, x, self.site)
            residual += y
            return None
        if lora is None:
            self.weight.add_to(residual, x)
            return None
        with _beside(x) as side:
            with side:
                delta = expand(lora.shrink(x, self.site))
            self.weight.add_to(residual, x)
        return delta

    def _project(self, x: torch.Tensor, lora: BatchLoRA | None, reader_expands: bool) -> Projection:
        if lora is None:
            return Projection(self.weight.multiply(x))
        if not uses_kernels(x):
            y = self.weight.multiply(x)
            lora.add(y, x, self.site)
            return Projection(y)
        with _beside(x) as side:
            with side:
                update = lora.shrink(x, self.site)
                delta = None if reader_expands else expand(update)
            y = self.weight.multiply(x)
        return Projection(y, None, update) if delta is None else Projection(y, delta)


@contextlib.contextmanager
def _beside(x: torch.Tensor) -> Iterator[contextlib.AbstractContextManager[Any]]:
    """On a GPU what is launched within the context that this gives runs beside what is launched
    behind it, until this ends.

    It goes first, since it is short. Tensors need no record_stream: both streams have met again
    before any of them can be freed, also where a launch fails.
    """
    if not x.is_cuda:
        yield contextlib.nullcontext()
        return
    side, main = _side_stream(x.device), torch.cuda.current_stream(x.device)
    side.wait_stream(main)
    try:
        yield torch.cuda.stream(side)
    finally:
        main.wait_stream(side)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
