"""QuantisedMatrix: the weight of linear modules in few bits, whatever file it comes from.

    W[n, k] = codes[n, j] * scales[n, j // group] + offsets[n, j // group],    k = order[j]

Rows n are out_features, columns k in_features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

FP8 = torch.float8_e4m3fn
MAX_FP8 = 448.0
_GROUPS = (64, 32)  # columns that share a scale when we quantise to int4: the first that divides


@dataclass(frozen=True, eq=False)
class QuantisedMatrix:
    """N rows (out_features), K columns (in_features)."""

    codes: torch.Tensor  # [N, K], int8 in -2^(bits-1) … 2^(bits-1)-1, or float8_e4m3fn
    scales: torch.Tensor  # float32 [N, G]
    offsets: torch.Tensor | None  # float32 [N, G]; None: all 0
    group: int  # columns of one scale; the last group may be shorter
    order: torch.Tensor | None = None  # int64 [K]; None: the columns stand in their order
    bits: int = 8

    @property
    def num_bytes(self) -> int:
        """That codes, scales and offsets take in a file with scales of 16 bits."""
        parts = 1 if self.offsets is None else 2
        return self.codes.numel() * self.bits // 8 + 2 * parts * self.scales.numel()

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        """W [N, K], computed in float32."""
        w = self.codes.float()
        for part, groups in self._groups(w):
            part *= self.scales[:, groups, None]
            if self.offsets is not None:
                part += self.offsets[:, groups, None]
        if self.order is not None:
            w = torch.empty_like(w).index_copy_(1, self.order, w)
        return w.to(dtype)

    def _groups(self, w: torch.Tensor) -> Iterator[tuple[torch.Tensor, slice]]:
        """Views [N, groups, columns of one] of w [N, K], and which groups: the last is apart where
        it is shorter."""
        full = w.shape[1] // self.group
        whole = full * self.group
        if full:
            yield w[:, :whole].unflatten(1, (full, self.group)), slice(full)
        if whole < w.shape[1]:
            yield w[:, whole:].unsqueeze(1), slice(full, None)


def join(parts: Sequence[QuantisedMatrix | None]) -> QuantisedMatrix | None:
    """The rows of all, one below the other; None where they are not quantised in the same way."""
    first, whole = parts[0], [part for part in parts if part is not None]
    if first is None or len(whole) < len(parts):
        return None
    if not all(_alike(first, part) for part in whole):
        return None
    if len(whole) == 1:
        return first
    offsets = None
    if any(part.offsets is not None for part in whole):
        offsets = torch.cat(
            [torch.zeros_like(p.scales) if p.offsets is None else p.offsets for p in whole]
        )
    codes = torch.cat([part.codes for part in whole])
    scales = torch.cat([part.scales for part in whole])
    return QuantisedMatrix(codes, scales, offsets, first.group, first.order, first.bits)


def _alike(one: QuantisedMatrix, other: QuantisedMatrix) -> bool:
    if (one.codes.dtype, one.group, one.bits) != (other.codes.dtype, other.group, other.bits):
        return False
    if one.order is None or other.order is None:
        return one.order is other.order
    return torch.equal(one.order, other.order)


def quantise(w: torch.Tensor, target: str) -> QuantisedMatrix | None:
    """W [N, K] to the nearest code: "int8" and "fp8" with a scale for each row, "int4" with a scale
    and an offset for each group of a row. None where K is no multiple of a group.

    Scales and offsets have the precision of W's dtype, so that products in this dtype lose nothing.
    """
    if target == "int4":
        return _int4(w)
    most = MAX_FP8 if target == "fp8" else 127.0
    scales = _in(w.dtype, _some(w.float().abs().amax(1, keepdim=True) / most))
    codes = w.float() / scales
    codes = codes.clamp(-most, most).to(FP8) if target == "fp8" else _whole(codes, -127, 127)
    return QuantisedMatrix(codes, scales, None, w.shape[1])


def _int4(w: torch.Tensor) -> QuantisedMatrix | None:
    group = next((size for size in _GROUPS if w.shape[1] % size == 0), None)
    if group is None:
        return None
    parts = w.float().unflatten(1, (-1, group))
    low, high = parts.amin(2), parts.amax(2)
    scales = _in(w.dtype, _some((high - low) / 15))
    offsets = _in(w.dtype, low + 8 * scales)  # of code 0, which stands eight steps above the lowest
    codes = _whole((parts - offsets[..., None]) / scales[..., None], -8, 7).flatten(1)
    return QuantisedMatrix(codes, scales, offsets, group, bits=4)


def _some(scales: torch.Tensor) -> torch.Tensor:
    """1 instead of 0, for what is all the same."""
    return torch.where(scales > 0, scales, 1.0)


def _in(dtype: torch.dtype, numbers: torch.Tensor) -> torch.Tensor:
    """float32 as it is in `dtype`."""
    return numbers.to(dtype).float()


def _whole(codes: torch.Tensor, least: int, most: int) -> torch.Tensor:
    return codes.round_().clamp_(least, most).to(torch.int8)
