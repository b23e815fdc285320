"""Weights of a base model: tensors on the device, modules that share an input fused.

Each tensor is copied from its memory-mapped file straight into its final place and dtype, so that
loading needs no host memory beside the model itself and, on a CPU, one matrix that is packed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from multilora.base_model.checkpoint import CheckpointFiles
from multilora.base_model.config import BaseConfig
from multilora.base_model.sites import LoRASite
from multilora_kernels.products import linear


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
        """residual [T, out_features] += y, without room for y."""
        if residual.device.type == "cpu":
            residual += linear(x, self.matrix)
        else:
            residual.addmm_(x, self.matrix.T)
        if self.bias is not None:
            residual += self.bias


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """As DenseWeight, on a CPU: W in the order in which oneDNN's products read it, so that these
    need not reorder it every time. Measured on 2 cores with AVX2 in float32: 2 to 3.6 times as fast
    for 2 to 32 rows, 1.1 to 1.5 times for 1 and for 256.
    """

    matrix: torch.Tensor  # what _reorder_linear_weight gives; its numbers cannot be looked at
    bias: torch.Tensor | None

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.matrix, self.bias, "none", [], "")

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        residual += self.multiply(x)


def packed(weight: DenseWeight) -> DenseWeight | PackedWeight:
    """Packed where this build of PyTorch and this processor can multiply with it."""
    if weight.matrix.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return weight
    try:
        matrix = torch.ops.mkldnn._reorder_linear_weight(weight.matrix)
        made = PackedWeight(matrix, weight.bias)
        made.multiply(weight.matrix.new_zeros(1, weight.matrix.shape[1]))
    except (AttributeError, RuntimeError):  # no such operation; none for this dtype
        return weight
    return made


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
    sites: Mapping[str, DenseWeight | PackedWeight]  # by the name of the site
    norms: tuple[LayerNorms, ...]  # of each layer
    norm: torch.Tensor  # [hidden], before the output head
    lm_head: torch.Tensor  # [vocab, hidden]


def load_weights(
    folder: Path, base: BaseConfig, dtype: torch.dtype, device: torch.device
) -> Weights:
    """Read a checkpoint folder; StartupError names the file and tensor that is missing or wrong.

    Tensors that the model does not use are left alone, as transformers does.
    """
    with CheckpointFiles(folder) as files:
        reader = _Reader(files, base, dtype, device)
        embed = reader.read("model.embed_tokens.weight", base.vocab_size, base.hidden_size)
        return Weights(
            embed=embed,
            sites={site.name: reader.site(site) for site in base.layer_sites},
            norms=tuple(reader.norms(layer) for layer in range(base.num_layers)),
            norm=reader.read("model.norm.weight", base.hidden_size),
            lm_head=reader.lm_head(embed),
        )


@dataclass(frozen=True)
class _Reader:
    files: CheckpointFiles
    base: BaseConfig
    dtype: torch.dtype
    device: torch.device

    def read(self, name: str, *shape: int) -> torch.Tensor:
        target = torch.empty(shape, dtype=self.dtype, device=self.device)
        self.files.copy(name, target)
        return target

    def site(self, site: LoRASite) -> DenseWeight | PackedWeight:
        matrix = self._fused(site, "weight", (site.in_features,))
        bias = self._fused(site, "bias", ()) if site.has_bias else None
        return packed(DenseWeight(matrix, bias))

    def norms(self, layer: int) -> LayerNorms:
        prefix, hidden = f"model.layers.{layer}", self.base.hidden_size
        return LayerNorms(
            attention=self.read(f"{prefix}.input_layernorm.weight", hidden),
            mlp=self.read(f"{prefix}.post_attention_layernorm.weight", hidden),
            qk=self._qk_norm(prefix) if self.base.qk_norm else None,
        )

    def lm_head(self, embed: torch.Tensor) -> torch.Tensor:
        """A head that stands in the files counts even when config.json ties it (transformers)."""
        name = "lm_head.weight"
        if self.base.tie_word_embeddings and name not in self.files:
            return embed
        head = self.read(name, *embed.shape)
        tied = self.base.tie_word_embeddings and torch.equal(head, embed)
        return embed if tied else head

    def _fused(self, site: LoRASite, kind: str, trailing: tuple[int, ...]) -> torch.Tensor:
        fused = torch.empty((site.out_features, *trailing), dtype=self.dtype, device=self.device)
        for part, target in zip(site.slices, fused.split(site.slice_sizes), strict=True):
            self.files.copy(f"{part.module}.{kind}", target)
        return fused

    def _qk_norm(self, prefix: str) -> torch.Tensor:
        base = self.base
        q = self.read(f"{prefix}.self_attn.q_norm.weight", base.head_dim)
        k = self.read(f"{prefix}.self_attn.k_norm.weight", base.head_dim)
        return torch.cat((q.expand(base.num_heads, -1), k.expand(base.num_kv_heads, -1)))
