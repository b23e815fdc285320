"""Rank pages: how the weights of adapters lie in the device pool, and how they come there.

A page holds the same PAGE_RANK ranks of every site (see LoRASite). For a site s:

    a[s]  [pages, slices, PAGE_RANK, in_features]   rank rows of A
    b[s]  [pages, PAGE_RANK, out_features]          rank rows of scaling · Bᵀ, slices in a row

so that y += Σ over ranks (x · a) b. What an adapter lacks is zeros. A site of E experts has

    a[s]  [pages · E, slices, PAGE_RANK, in_features]   of expert e in entry page · E + e
    b[s]  [pages · E, PAGE_RANK, out_features]

as if each page were E pages: the kernels know no experts. Host memory holds an adapter as
its files do, with a plan that says where each factor belongs: it travels in pieces, each one copy,
and is turned, scaled and padded on the device, on a GPU beside the passes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from multilora.base_model.sites import LoRASite
from multilora_kernels.pack import COLUMNS, pack
from multilora_kernels.segments import PAGE_RANK

PIECE_BYTES = 4 << 20  # of the larger of what is read and written, about
SOURCE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # that packing takes
_SLOTS = 4  # pieces on their way to a GPU
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a number
# A [rank, in], B [out, rank] and scaling of a module; of experts A [E, rank, in], B [E, out, rank].
Pair = tuple[torch.Tensor, torch.Tensor, float]


def bytes_per_page(sites: Iterable[LoRASite], dtype: torch.dtype) -> int:
    return PAGE_RANK * sum(site.numbers_per_rank for site in sites) * dtype.itemsize


def copy_bytes(sites: Iterable[LoRASite], num_pages: int) -> int:
    """What a GPU holds beside its pool while adapters of `num_pages` come: pieces, and a part."""
    widest = max(max(site.in_features, *site.slice_sizes) for site in sites)
    part = num_pages * PAGE_RANK * widest * torch.float32.itemsize
    return _SLOTS * PIECE_BYTES + (part if part > PIECE_BYTES else 0)


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """As torch.zeros; on a CPU memory is taken from the system only when it is first written."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    untouched = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(untouched).view(dtype).view(shape)


class Piece(NamedTuple):
    """Parts that travel together: bytes `start` to `end` of an adapter, all of one dtype."""

    parts: slice  # rows of the plan
    start: int
    end: int
    dtype: torch.dtype
    cost: int  # bytes read or written, whatever is more
    widest: int  # width of a part
    scaling: float  # the largest


class PackPlan:
    """Where the factors of an adapter stand in its bytes, and where they go in its pages.

    Adapters of one training share a plan. `parts` int64 [parts, COLUMNS] as pack takes them, but
    for targets, which count from where `places` begin: a and b of each site in turn.
    """

    def __init__(
        self,
        factors: Mapping[str, Pair],
        data: torch.Tensor,
        sites: Sequence[LoRASite],
    ) -> None:
        """`factors` by module path; they are views of `data` (see is_tidy)."""
        rank = max(a.shape[-2] for a, _, _ in factors.values())
        self.num_pages = -(-rank // PAGE_RANK)
        found = sorted(_parts(factors, data.data_ptr(), sites), key=lambda part: part.start)
        self.pieces = _pieces(found, self.num_pages)
        self.places = np.array([part.place for part in found])
        self.parts = np.array([part.row for part in found], dtype=np.int64)
        for piece in self.pieces:
            starts = np.array([part.start - piece.start for part in found[piece.parts]])
            self.parts[piece.parts, 0] = np.maximum(starts, 0) // piece.dtype.itemsize


class _Part(NamedTuple):
    start: int  # in bytes; -1: the adapter lacks it
    nbytes: int
    dtype: torch.dtype | None
    place: int
    scaling: float
    row: tuple[int, ...]  # without the offset


def _parts(
    factors: Mapping[str, Pair],
    origin: int,
    sites: Sequence[LoRASite],
) -> Iterable[_Part]:
    for index, site in enumerate(sites):
        places = 2 * index, 2 * index + 1
        inputs, outputs = site.in_features, site.out_features
        if site.experts > 1 and not any(part.module in factors for part in site.slices):
            # One part for what all experts lack, in pages of PAGE_RANK rows that are as wide.
            for place, width in zip(places, (len(site.slices) * inputs, outputs), strict=True):
                width *= site.experts
                yield _part(None, origin, place, (width, 0, 0), (0, PAGE_RANK * width, width), 1)
            continue
        for expert in range(site.experts):
            column, first = 0, expert * len(site.slices)
            for slot, module in enumerate(site.slices, start=first):
                a, b, scaling = _of_expert(factors.get(module.module), expert, site)
                stride = site.experts * len(site.slices) * PAGE_RANK * inputs
                place = (slot * PAGE_RANK * inputs, stride, inputs)
                rank = 0 if a is None else len(a)
                yield _part(a, origin, places[0], (inputs, rank, 0), place, 1)
                width, start = module.out_features, expert * PAGE_RANK * outputs
                place = (start + column, site.experts * PAGE_RANK * outputs, outputs)
                yield _part(b, origin, places[1], (width, rank, 1), place, scaling)
                column += width


def _of_expert(
    pair: Pair | None, expert: int, site: LoRASite
) -> tuple[torch.Tensor | None, torch.Tensor | None, float]:
    if pair is None:
        return None, None, 1.0
    a, b, scaling = pair
    return (a, b, scaling) if site.experts == 1 else (a[expert], b[expert], scaling)


def _part(
    factor: torch.Tensor | None,
    origin: int,
    place: int,
    shape: tuple[int, int, int],
    target: tuple[int, int, int],
    scaling: float,
) -> _Part:
    row = (0, *shape, *target, int(np.float32(scaling).view(np.int32)))
    if factor is None:
        return _Part(-1, 0, None, place, 0.0, row)
    return _Part(factor.data_ptr() - origin, factor.nbytes, factor.dtype, place, scaling, row)


def _pieces(parts: Sequence[_Part], num_pages: int) -> tuple[Piece, ...]:
    """Runs of parts that are one run of bytes: a new one begins behind a gap, too."""
    pieces: list[Piece] = []
    for index, part in enumerate(parts):
        last = pieces[-1] if pieces else None
        cost = max(part.nbytes, num_pages * PAGE_RANK * part.row[1] * 2)
        start, dtype = max(part.start, 0), part.dtype or torch.float32
        widest, scaling = part.row[1], abs(part.scaling)
        follows = last and part.start in (last.end, -1) and dtype == last.dtype
        if last and follows and last.cost + cost <= PIECE_BYTES:
            cost, first, start = last.cost + cost, last.parts.start, last.start
            widest, scaling = max(last.widest, widest), max(last.scaling, scaling)
            pieces.pop()
        else:
            first = index
        end = max(part.start, 0) + part.nbytes
        pieces.append(Piece(slice(first, index + 1), start, end, dtype, cost, widest, scaling))
    return tuple(pieces)


def is_tidy(factors: Mapping[str, Pair], data: torch.Tensor, start: int) -> bool:
    """Whether `data` holds these factors and nothing else behind `start`, as packing takes them."""
    halves = [half for a, b, _ in factors.values() for half in (a, b)]
    return sum(half.nbytes for half in halves) == len(data) - start and all(
        half.dtype in SOURCE_DTYPES
        and half.is_contiguous()
        and 0 <= half.data_ptr() - data.data_ptr() < len(data)
        for half in halves
    )


def tidied(factors: Mapping[str, Pair]) -> tuple[torch.Tensor, dict[str, Pair]]:
    """A copy of the factors and nothing else, and its views."""
    halves = [half for a, b, _ in factors.values() for half in (a, b)]
    narrow = [half if half.dtype in SOURCE_DTYPES else half.float() for half in halves]
    data = torch.empty(sum(half.nbytes for half in narrow), dtype=torch.uint8)
    moved: dict[int, torch.Tensor] = {}
    end = 0
    # The wide ones first, so that each is aligned.
    for index in sorted(range(len(narrow)), key=lambda index: -narrow[index].itemsize):
        half = narrow[index]
        start, end = end, end + half.nbytes
        moved[index] = data[start:end].view(half.dtype).view(half.shape).copy_(half)
    scalings = [scaling for _, _, scaling in factors.values()]
    return data, {
        name: (moved[2 * index], moved[2 * index + 1], scalings[index])
        for index, name in enumerate(factors)
    }


def largest(numbers: torch.Tensor) -> float:
    """The largest magnitude; NaN when one is. In one thread, at the speed of memory.

    The bits of a magnitude, read as an integer, grow with it; beyond infinity they mean NaN.
    """
    if not numbers.numel():
        return 0.0
    bits = numbers.detach().contiguous().flatten().view(_BITS[numbers.itemsize]).numpy()
    sign = 1 << (8 * numbers.itemsize - 1)
    positive = max(int(bits.max()), 0)
    negative = int(bits.view(f"u{bits.dtype}").max())
    magnitude = max(positive, negative - sign if negative >= sign else 0)
    return torch.tensor([magnitude], dtype=_BITS[numbers.itemsize]).view(numbers.dtype).item()


class HostWeights(NamedTuple):
    """An adapter in host memory: `data` uint8, flat, and where its factors stand there."""

    data: torch.Tensor
    plan: PackPlan

    def numbers(self, piece: Piece) -> torch.Tensor:
        return self.data[piece.start : piece.end].view(piece.dtype)


class _Lane:
    """The way to a GPU beside the passes: a stream, and page-locked memory for a few pieces."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self._here = torch.empty(_SLOTS, PIECE_BYTES, dtype=torch.uint8, pin_memory=True)
        self._there = torch.empty(_SLOTS, PIECE_BYTES, dtype=torch.uint8, device=device)
        self._sent = [torch.cuda.Event() for _ in range(_SLOTS)]
        self._next = 0
        self._context = torch.cuda.stream(self.stream)

    def __enter__(self) -> None:
        self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        """Wait until all that was sent has been packed."""
        self._context.__exit__(*error)
        self.stream.synchronize()

    def send(self, numbers: torch.Tensor) -> torch.Tensor:
        """The numbers on the device, until _SLOTS more pieces have been sent."""
        size = numbers.nbytes
        if size > PIECE_BYTES:  # a single part
            return numbers.to(self.stream.device)
        slot, self._next = self._next, (self._next + 1) % _SLOTS
        self._sent[slot].synchronize()
        here, there = (at[slot, :size].view(numbers.dtype) for at in (self._here, self._there))
        there.copy_(here.copy_(numbers), non_blocking=True)
        self._sent[slot].record(self.stream)
        return there


class RankPagePool:
    """The device pool: `num_pages` pages of `dtype` on `device`, zeros at first.

    Which adapter owns which page is RankPageAllocator's business; pages without an owner hold stale
    numbers and are never referenced. `a` and `b`, views of `data`, are what the kernels take.
    """

    def __init__(
        self,
        sites: Sequence[LoRASite],
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        sizes: list[int] = []
        for site in sites:
            entries = num_pages * site.experts
            sizes.append(entries * PAGE_RANK * len(site.slices) * site.in_features)
            sizes.append(entries * PAGE_RANK * site.out_features)
        self.data = zeros((sum(sizes),), dtype, device)
        self.a: dict[str, torch.Tensor] = {}
        self.b: dict[str, torch.Tensor] = {}
        runs = iter(self.data.split(sizes))
        for site in sites:
            entries = num_pages * site.experts
            shape = (entries, len(site.slices), PAGE_RANK, site.in_features)
            self.a[site.name] = next(runs).view(shape)
            self.b[site.name] = next(runs).view(entries, PAGE_RANK, site.out_features)
        self.num_pages = num_pages
        self.nbytes = self.data.nbytes
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._tables: WeakKeyDictionary[PackPlan, torch.Tensor] = WeakKeyDictionary()
        self._lane = _Lane(self.data.device) if self.data.is_cuda else None
        if self._lane:
            self._compile()

    def launched(self) -> torch.cuda.Event | None:
        """The passes up to now, which may read pages that `write` is to fill."""
        if not self._lane:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.data.device))
        return event

    def write(
        self,
        pages: Sequence[int],
        source: HostWeights,
        passes: torch.cuda.Event | None = None,
    ) -> None:
        """Fill the pages with an adapter, page i with its i-th ranks, after `passes`.

        It has come to its end when this returns. One thread at a time. ValueError when the number
        of pages differs.
        """
        plan = source.plan
        if len(pages) != plan.num_pages:
            raise ValueError(f"the weights have {plan.num_pages} pages, got {len(pages)}")
        with self._lane or nullcontext():
            for index, piece in enumerate(plan.pieces):
                numbers = source.numbers(piece)
                if self._lane:
                    numbers = self._lane.send(numbers)
                    if passes and not index:
                        self._lane.stream.wait_event(passes)
                parts = self._table(plan)[piece.parts]
                pack(numbers, self.data, parts, piece.widest, pages)

    def _table(self, plan: PackPlan) -> torch.Tensor:
        """The plan's parts for this pool, on its device."""
        if (found := self._tables.get(plan)) is None:
            parts = plan.parts.copy()
            parts[:, 4] += self._starts[plan.places]
            found = self._tables[plan] = torch.from_numpy(parts).to(self.data.device)
        return found

    def _compile(self) -> None:
        """The kernels, for what files may hold: a launch over a part without columns."""
        nothing = torch.zeros(1, COLUMNS, dtype=torch.int64, device=self.data.device)
        for dtype in SOURCE_DTYPES:
            pack(torch.zeros(16, dtype=dtype, device=self.data.device), self.data, nothing, 1, [0])
        torch.cuda.synchronize(self.data.device)  # the zeros of the pool are there, too
