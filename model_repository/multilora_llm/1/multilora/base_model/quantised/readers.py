"""Readers: from the tensors of a quantised module, as its checkpoint has them, to QuantisedMatrix.

The function of each form is pure and given its tensors; `read_matrix` takes them from the files,
where their names tell the form. Sources: the files that AutoGPTQ and GPTQModel, AutoAWQ,
compressed-tensors and transformers (fine-grained FP8) write.
"""

from dataclasses import dataclass

import torch

from multilora.base_model.checkpoint import CheckpointFiles
from multilora.base_model.quantised.matrix import FP8, QuantisedMatrix
from multilora.base_model.quantised.scheme import Scheme

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of eight columns in the eight nibbles of a word


def read_matrix(
    files: CheckpointFiles,
    module: str,
    rows: int,
    columns: int,
    scheme: Scheme,
    device: torch.device,
) -> QuantisedMatrix | None:
    """The weight [rows, columns] of `module`, None where its files are not quantised. StartupError
    names the tensor that is missing or has another shape."""
    if not scheme.method:
        return None
    module_files = _Module(files, module, rows, columns, scheme, device)
    if module_files.has("qweight"):
        return module_files.awq() if scheme.method == "awq" else module_files.gptq()
    if module_files.has("weight_packed"):
        return module_files.packed()
    for scale in ("weight_scale_inv", "weight_scale"):
        if module_files.has(scale):
            return module_files.scaled(scale)
    return None


def gptq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor | None,
    bits: int,
    group: int,
    first_zero: int,
) -> QuantisedMatrix:
    """qweight int32 [K * bits / 32, N], qzeros int32 [G, N * bits / 32], scales [G, N], g_idx [K]:
    the group of each column. W = (q - zero) * scale."""
    zeros = (unpacked(qzeros, bits, 1) + first_zero) & ((1 << bits) - 1)
    codes = unpacked(qweight, bits, 0).T
    return _matrix(codes, zeros.T, scales.T, g_idx, bits, group)


def awq(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, group: int
) -> QuantisedMatrix:
    """qweight int32 [K, N / 8], qzeros int32 [G, N / 8], scales [G, N]: both packed along N."""
    places = torch.tensor(_AWQ_PLACES, device=qweight.device)
    codes, zeros = (
        unpacked(packed, 4, 1).unflatten(1, (-1, 8)).index_select(2, places).flatten(1)
        for packed in (qweight, qzeros)
    )
    return _matrix(codes.T, zeros.T, scales.T, None, 4, group)


def packed(
    weight_packed: torch.Tensor,
    weight_scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    g_idx: torch.Tensor | None,
    bits: int,
    columns: int,
    group: int,
) -> QuantisedMatrix:
    """compressed-tensors: weight_packed int32 [N, K * bits / 32], weight_scale [N, G], zero_point
    int32 [N * bits / 32, G]. Codes and zero points are written with 2^(bits-1) added."""
    codes = unpacked(weight_packed, bits, 1)[:, :columns]
    zeros = None
    if zero_point is not None:
        zeros = unpacked(zero_point, bits, 0)[: len(codes)]
    return _matrix(codes, zeros, weight_scale, g_idx, bits, group)


def scaled(
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    block: tuple[int, int],
    group: int,
) -> QuantisedMatrix | None:
    """weight float8_e4m3fn or int8 [N, K]; scale of all, of each row ([N] or [N, 1]), of groups of
    `group` columns of a row [N, G], or of blocks; zero_point like scale. W = (weight - zero_point)
    * scale. None where the scales are as many as none of these."""
    rows, columns = weight.shape
    scale = scale.float()
    offsets = None
    if zero_point is not None and zero_point.float().any():
        offsets = -zero_point.float() * scale
    if scale.numel() == 1:
        scale = scale.reshape(1, 1).expand(rows, 1)
        offsets = None if offsets is None else offsets.reshape(1, 1).expand(rows, 1)
        return QuantisedMatrix(weight, scale, offsets, columns)
    if scale.ndim == 1:
        scale = scale[:, None]
        offsets = None if offsets is None else offsets[:, None]
    if scale.ndim != 2:
        return None
    if len(scale) == rows:
        return QuantisedMatrix(weight, scale, offsets, group)
    if list(scale.shape) != [-(-rows // block[0]), -(-columns // block[1])] or offsets is not None:
        return None
    scale = scale.repeat_interleave(block[0], 0)[:rows]
    return QuantisedMatrix(weight, scale, None, block[1])


def unpacked(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """int32 [R, C] → uint8 with 32 / bits times as many numbers along `dim`, low bits first."""
    mask = (1 << bits) - 1
    parts = [((words >> shift) & mask).to(torch.uint8) for shift in range(0, 32, bits)]
    return torch.stack(parts, dim + 1).flatten(dim, dim + 1)


def _matrix(
    codes: torch.Tensor,
    zeros: torch.Tensor | None,
    scales: torch.Tensor,
    g_idx: torch.Tensor | None,
    bits: int,
    group: int,
) -> QuantisedMatrix:
    """Of codes [N, K] and zeros [N, G], uint8; no zeros are the middle."""
    middle, scales = 1 << (bits - 1), scales.float().contiguous()
    offsets = None if zeros is None else ((middle - zeros.float()) * scales).contiguous()
    if offsets is not None and not offsets.any():
        offsets = None
    signed = (codes - middle).view(torch.int8)  # what is below 0 has wrapped around
    order = None
    if g_idx is not None:
        place = torch.arange(len(g_idx), device=g_idx.device)
        sorted_, order = g_idx.long().sort(stable=True)
        if torch.equal(order, place):
            order = None
        if not torch.equal(sorted_, place // group):  # groups of other sizes: a scale for each
            scales, group = scales.index_select(1, sorted_), 1
            offsets = None if offsets is None else offsets.index_select(1, sorted_)
    if order is not None:
        signed = signed.index_select(1, order)
    return QuantisedMatrix(signed.contiguous(), scales, offsets, group, order, bits)


@dataclass(frozen=True)
class _Module:
    """The files of one module, whose weight is [rows, columns]."""

    files: CheckpointFiles
    name: str
    rows: int
    columns: int
    scheme: Scheme
    device: torch.device

    def has(self, kind: str) -> bool:
        return f"{self.name}.{kind}" in self.files

    def read(self, kind: str, *shape: int) -> torch.Tensor:
        """A copy on the device: files are mapped, and may change."""
        tensor = self.files.read(f"{self.name}.{kind}", shape or None)
        return tensor.to(self.device, copy=True)

    def maybe(self, kind: str, *shape: int) -> torch.Tensor | None:
        return self.read(kind, *shape) if self.has(kind) else None

    def zero_point(self, *shape: int) -> torch.Tensor | None:
        """Of compressed-tensors."""
        kind = "weight_zero_point"
        return self.read(kind, *shape) if self.scheme.zero_points else self.maybe(kind, *shape)

    def group(self, scales: torch.Tensor) -> int:
        """Of compressed-tensors and FP8: how many columns share a scale [N, G]. The last group may
        be shorter, which only the size in config.json tells."""
        count = scales.shape[1] if scales.ndim == 2 else 1
        told = (size for size in self.scheme.group_sizes if -(-self.columns // size) == count)
        return next(told, -(-self.columns // count))

    def gptq(self) -> QuantisedMatrix:
        n, k, bits = self.rows, self.columns, self.scheme.bits
        group = self.scheme.group_size or k
        groups = -(-k // group)
        return gptq(
            self.read("qweight", k * bits // 32, n),
            self.read("qzeros", groups, n * bits // 32),
            self.read("scales", groups, n),
            self.maybe("g_idx", k),
            bits,
            group,
            self.scheme.first_zero,
        )

    def awq(self) -> QuantisedMatrix:
        n, k = self.rows, self.columns
        group = self.scheme.group_size or k
        groups = -(-k // group)
        return awq(
            self.read("qweight", k, n // 8),
            self.read("qzeros", groups, n // 8),
            self.read("scales", groups, n),
            group,
        )

    def packed(self) -> QuantisedMatrix:
        n, k = self.rows, self.columns
        words = self.files.shape(f"{self.name}.weight_packed")
        bits = 4 if words[-1] == -(-k // 8) else 8
        scales = self.read("weight_scale")
        if scales.ndim != 2 or len(scales) != n or scales.shape[1] > k:
            raise self.files.wrong_shape(f"{self.name}.weight_scale", (n, 1))
        return packed(
            self.read("weight_packed", n, -(-k * bits // 32)),
            scales,
            self.zero_point(-(-n * bits // 32), scales.shape[1]),
            self.maybe("weight_g_idx", k),
            bits,
            k,
            self.group(scales),
        )

    def scaled(self, name: str) -> QuantisedMatrix:
        weight, scale = self.read("weight", self.rows, self.columns), self.read(name)
        if weight.dtype not in (FP8, torch.int8):
            raise self.files.wrong_dtype(f"{self.name}.weight", weight.dtype)
        zero_point = self.zero_point(*scale.shape)
        matrix = scaled(weight, scale, zero_point, self.scheme.block, self.group(scale))
        if matrix is None:
            raise self.files.wrong_shape(f"{self.name}.{name}", (self.rows, 1))
        return matrix
