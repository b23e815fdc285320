"""Weights of a base model: tensors on the device, modules that share an input fused.

Each tensor is copied from its memory-mapped file straight into its final place and dtype, so that
loading needs no memory beside the model itself and one matrix that is packed or quantised.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from multilora.base_model.checkpoint import CheckpointFiles, watched
from multilora.base_model.config import NativeConfig
from multilora.base_model.quantised.matrix import QuantisedMatrix, join, quantise
from multilora.base_model.quantised.products import (
    QuantisedWeight,
    check_target,
    quantised_weight,
)
from multilora.base_model.quantised.readers import read_matrix
from multilora.base_model.quantised.scheme import Scheme, read_scheme
from multilora.base_model.sites import LoRASite
from multilora.errors import first_line
from multilora_kernels.products import has_instructions, linear

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_ROUNDING = 2.0**-20  # relatively, of a sum of some hundred numbers in float32
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class DenseWeight:
    """The weight of a site in the engine's dtype. Other forms of a weight have the same methods.

    y = x Wᵀ + bias, with x [T, in_features], y [T, out_features].
    """

    matrix: torch.Tensor  # W [out_features, in_features]
    bias: torch.Tensor | None  # [out_features]

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.matrix, self.bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """residual [T, out_features] += y; without room for y on a GPU."""
        if residual.device.type == "cpu":
            residual += self.multiply(x)
            return
        residual.addmm_(x, self.matrix.T)
        if self.bias is not None:
            residual += self.bias


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """As DenseWeight, on a CPU, where HalfWeight does not serve: W in the order in which oneDNN's
    products read it, so that these need not reorder it every time. Measured on 2 cores with AVX2 in
    float32: 2 to 3.6 times as fast for 2 to 32 rows, 1.1 to 1.5 times for 1 and for 256.
    """

    matrix: torch.Tensor  # what _reorder_linear_weight gives; its numbers cannot be looked at
    bias: torch.Tensor | None

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.matrix, self.bias, "none", [], "")

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        residual += self.multiply(x)


@dataclass(frozen=True, eq=False)
class HalfWeight:
    """As DenseWeight, on a CPU: W as float16, which FBGEMM's product widens to float32 on the way
    from the caches to the registers, and sums in float32. So it reads half the bytes of float32,
    and needs no instructions for a 16-bit type.

    Measured on 2 cores with AVX2, all products of a pass of a base model with 138 M numbers in its
    matrices (0.28 GB, which memory gives in 13 ms), for 1, 8 and 32 rows: 15, 30 and 95 ms.
    oneDNN's with packed float32 take 38, 51 and 108, PyTorch's in bfloat16 19, 131 and 270. Of 512
    rows it is as fast as oneDNN's.
    """

    packed: torch.ScriptObject  # scale · (W, bias)
    scale: float  # a power of two

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.ops.quantized.linear_dynamic_fp16(x.float(), self.packed)
        if self.scale != 1:
            y *= 1 / self.scale
        return y.to(x.dtype)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        residual += self.multiply(x)


def packed(weight: DenseWeight) -> "SiteWeight":
    """On a CPU packed, where this build of PyTorch and this processor can multiply with it."""
    if weight.matrix.device.type != "cpu":
        return weight
    return _half(weight) or _reordered(weight) or weight


def _half(weight: DenseWeight) -> HalfWeight | None:
    """None where the processor's own instructions for a 16-bit type serve, and where float16 would
    lose more of W than sums in float32 round off: of a checkpoint in float32."""
    matrix, bias = weight.matrix, weight.bias
    dtype = matrix.dtype
    if dtype not in _FLOATS or (dtype.itemsize == 2 and has_instructions(dtype)):
        return None
    scale = next((scale for scale in _scales(matrix) if _is_half(matrix, scale)), None)
    if scale is None:
        return None
    bias = None if bias is None else bias.float() * scale
    try:
        made = HalfWeight(
            torch.ops.quantized.linear_prepack_fp16(_scaled(matrix, scale), bias), scale
        )
        made.multiply(matrix.new_zeros(1, matrix.shape[1]))
    except (AttributeError, RuntimeError):  # a build or a processor without FBGEMM
        return None
    return made


def _scales(matrix: torch.Tensor) -> tuple[float, ...]:
    """Powers of two: 1, and the one that brings the largest number near to the largest of float16,
    so that the smallest ones lose least."""
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    if not 0 < largest < math.inf:
        return (1.0,)
    most = 2.0 ** min(15 - math.frexp(largest)[1], 96)
    return (1.0, most) if largest > torch.finfo(torch.float16).tiny else (most,)


def _is_half(matrix: torch.Tensor, scale: float) -> bool:
    """Whether float16 can stand for scale · matrix. Part by part, which takes little memory."""
    lost = whole = 0.0
    for part in matrix.split(_ROWS_AT_ONCE):
        wide = _scaled(part, scale)
        whole += float(wide.norm()) ** 2
        lost += float((wide.half().float() - wide).norm()) ** 2
    return lost <= _ROUNDING**2 * whole < math.inf


def _scaled(matrix: torch.Tensor, scale: float) -> torch.Tensor:
    """float32."""
    return matrix.float() if scale == 1 else matrix.float() * scale


def _reordered(weight: DenseWeight) -> PackedWeight | None:
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        matrix = torch.ops.mkldnn._reorder_linear_weight(weight.matrix)
        made = PackedWeight(matrix, weight.bias)
        made.multiply(weight.matrix.new_zeros(1, weight.matrix.shape[1]))
    except (AttributeError, RuntimeError):  # no such operation; none for this dtype
        return None
    return made


SiteWeight = DenseWeight | PackedWeight | HalfWeight | QuantisedWeight


@dataclass
class QuantisedSites:
    """What has become of the linear layers of a base model that is quantised. Filled while they
    are read."""

    name: str  # of what they are quantised with
    dtype: str  # of what is not computed in few bits
    forms: Counter[str] = field(default_factory=Counter)  # in which they are computed → sites
    num_bytes: int = 0
    dense_bytes: int = 0  # that they would have in `dtype`
    reason: str = ""  # why some are computed in `dtype`

    def add(self, weight: SiteWeight, dense_bytes: int) -> None:
        quantised = isinstance(weight, QuantisedWeight)
        self.forms[weight.form if quantised else self.dtype] += 1
        self.num_bytes += weight.num_bytes if quantised else dense_bytes
        self.dense_bytes += dense_bytes


@dataclass(frozen=True, eq=False)
class LayerNorms:
    """The norm weights of one decoder layer."""

    attention: torch.Tensor  # [hidden], before the attention
    mlp: torch.Tensor  # [hidden], before the MLP
    qk: torch.Tensor | None  # [heads + kv_heads, head_dim], of each head; None: there is none


@dataclass(frozen=True, eq=False)
class Weights:
    """A whole base model, filled by load_weights; a tied `lm_head` is `embed` itself.

    `sites` are those of the layers."""

    embed: torch.Tensor  # [vocab, hidden]
    sites: Mapping[str, SiteWeight]  # by the name of the site
    norms: tuple[LayerNorms, ...]  # of each layer
    norm: torch.Tensor  # [hidden], before the output head
    lm_head: torch.Tensor  # [vocab, hidden]
    quantised: QuantisedSites | None = None


def load_weights(
    folder: Path,
    base: NativeConfig,
    dtype: torch.dtype,
    device: torch.device,
    quantize: str = "auto",
) -> Weights:
    """Read a checkpoint folder; StartupError names the file and tensor that is missing or wrong.

    `quantize` is the setting (see EngineConfig). Tensors that the model does not use are left
    alone, as transformers does, and named in a warning.
    """
    scheme = read_scheme(folder).with_target(quantize)
    with CheckpointFiles(folder) as files:
        linears = SiteReader(files, scheme, dtype, device)
        reader = _Reader(files, base, dtype, device)
        embed = reader.read("model.embed_tokens.weight", base.vocab_size, base.hidden_size)
        weights = Weights(
            embed=embed,
            sites={
                site.name: linears.read(site)
                for site in watched(base.layer_sites, "reading the base model")
            },
            norms=tuple(reader.norms(layer) for layer in range(base.num_layers)),
            norm=reader.read("model.norm.weight", base.hidden_size),
            lm_head=reader.lm_head(embed, linears),
            quantised=linears.quantised,
        )
        files.report_unused()
    return weights


class SiteReader:
    """The weights of sites from the files of a checkpoint, quantised as `scheme` says."""

    def __init__(
        self, files: CheckpointFiles, scheme: Scheme, dtype: torch.dtype, device: torch.device
    ) -> None:
        """StartupError where the target of `scheme` cannot be computed."""
        self._files = files
        self._scheme = scheme
        self._dtype = dtype
        self._device = device
        self.quantised: QuantisedSites | None = None
        if name := scheme.target or scheme.method:
            self.quantised = QuantisedSites(name, str(dtype).removeprefix("torch."))
        if scheme.target:
            check_target(scheme.target, dtype, device)

    def read(self, site: LoRASite) -> SiteWeight:
        bias = self._fused(site, "bias", ()) if site.has_bias else None
        weight = self._weight(site, bias)
        if self.quantised:
            numbers = site.in_features * site.out_features
            self.quantised.add(weight, numbers * self._dtype.itemsize)
        return weight

    def matrix(self, module: str, rows: int, columns: int) -> QuantisedMatrix | None:
        """The weight of a module; None where the files do not have it quantised."""
        return read_matrix(self._files, module, rows, columns, self._scheme, self._device)

    def _weight(self, site: LoRASite, bias: torch.Tensor | None) -> SiteWeight:
        target = self._scheme.target
        parts = [
            self.matrix(part.module, part.out_features, site.in_features) for part in site.slices
        ]
        weight = None
        if target in ("", "fp8"):
            joined = join(parts)
            if joined is None and any(parts) and self.quantised:
                self.quantised.reason = "modules with one input are quantised in different ways"
            weight = self._product(joined, bias)
        if weight is None:
            dense = self._dense(site, parts)
            if target:
                weight = self._product(quantise(dense, target), bias)
            weight = weight or packed(DenseWeight(dense, bias))
        return weight

    def _product(
        self, matrix: QuantisedMatrix | None, bias: torch.Tensor | None
    ) -> QuantisedWeight | None:
        """None where there is none for it."""
        if matrix is None:
            return None
        try:
            return quantised_weight(matrix, bias, self._dtype)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self.quantised:
                self.quantised.reason = first_line(error)
            return None

    def _dense(self, site: LoRASite, parts: Sequence[QuantisedMatrix | None]) -> torch.Tensor:
        if not any(parts):
            return self._fused(site, "weight", (site.in_features,))
        fused = self._empty(site.out_features, site.in_features)
        slices = zip(site.slices, parts, fused.split(site.slice_sizes), strict=True)
        for part, matrix, target in slices:
            if matrix:
                target.copy_(matrix.dequantised(self._dtype))
            else:
                self._files.copy(f"{part.module}.weight", target)
        return fused

    def _fused(self, site: LoRASite, kind: str, trailing: tuple[int, ...]) -> torch.Tensor:
        fused = self._empty(site.out_features, *trailing)
        for part, target in zip(site.slices, fused.split(site.slice_sizes), strict=True):
            self._files.copy(f"{part.module}.{kind}", target)
        return fused

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)


@dataclass(frozen=True)
class _Reader:
    files: CheckpointFiles
    base: NativeConfig
    dtype: torch.dtype
    device: torch.device

    def read(self, name: str, *shape: int) -> torch.Tensor:
        target = torch.empty(shape, dtype=self.dtype, device=self.device)
        self.files.copy(name, target)
        return target

    def norms(self, layer: int) -> LayerNorms:
        prefix, hidden = f"model.layers.{layer}", self.base.hidden_size
        return LayerNorms(
            attention=self.read(f"{prefix}.input_layernorm.weight", hidden),
            mlp=self.read(f"{prefix}.post_attention_layernorm.weight", hidden),
            qk=self._qk_norm(prefix) if self.base.qk_norm else None,
        )

    def lm_head(self, embed: torch.Tensor, linears: SiteReader) -> torch.Tensor:
        """A head that stands in the files counts even when config.json ties it (transformers)."""
        name = "lm_head.weight"
        if matrix := linears.matrix("lm_head", *embed.shape):
            return matrix.dequantised(self.dtype)
        if self.base.tie_word_embeddings and name not in self.files:
            return embed
        head = self.read(name, *embed.shape)
        tied = self.base.tie_word_embeddings and torch.equal(head, embed)
        return embed if tied else head

    def _qk_norm(self, prefix: str) -> torch.Tensor:
        base = self.base
        q = self.read(f"{prefix}.self_attn.q_norm.weight", base.head_dim)
        k = self.read(f"{prefix}.self_attn.k_norm.weight", base.head_dim)
        return torch.cat((q.expand(base.num_heads, -1), k.expand(base.num_kv_heads, -1)))
