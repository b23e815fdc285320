"""Weights of a base model: tensors on the device, projections that share an input fused.

Each tensor is copied from its memory-mapped file straight into its final place and dtype, so that
loading needs no host memory beside the model itself.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from multilora.base_model.checkpoint import CheckpointFiles
from multilora.base_model.config import PROJECTION_GROUPS, BaseConfig

_MODULES = {"qkv": "self_attn", "o": "self_attn", "gate_up": "mlp", "down": "mlp"}


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One decoder layer. Matrices are [out, in], fused as in PROJECTION_GROUPS; None = has none."""

    input_norm: torch.Tensor  # [hidden]
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    qk_norm: torch.Tensor | None  # [heads + kv_heads, head_dim], the norm weight of each head
    o: torch.Tensor
    o_bias: torch.Tensor | None
    post_norm: torch.Tensor  # [hidden]
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Weights:
    """A whole base model, filled by load_weights; a tied `lm_head` is `embed` itself."""

    embed: torch.Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor  # [hidden]
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
            layers=tuple(reader.layer(index) for index in range(base.num_layers)),
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

    def layer(self, index: int) -> LayerWeights:
        prefix, hidden = f"model.layers.{index}", self.base.hidden_size
        return LayerWeights(
            input_norm=self.read(f"{prefix}.input_layernorm.weight", hidden),
            qkv=self._matrix(prefix, "qkv"),
            qkv_bias=self._bias(prefix, "qkv"),
            qk_norm=self._qk_norm(prefix),
            o=self._matrix(prefix, "o"),
            o_bias=self._bias(prefix, "o"),
            post_norm=self.read(f"{prefix}.post_attention_layernorm.weight", hidden),
            gate_up=self._matrix(prefix, "gate_up"),
            gate_up_bias=self._bias(prefix, "gate_up"),
            down=self._matrix(prefix, "down"),
            down_bias=self._bias(prefix, "down"),
        )

    def lm_head(self, embed: torch.Tensor) -> torch.Tensor:
        """A head that stands in the files counts even when config.json ties it (transformers)."""
        name = "lm_head.weight"
        if self.base.tie_word_embeddings and name not in self.files:
            return embed
        head = self.read(name, *embed.shape)
        tied = self.base.tie_word_embeddings and torch.equal(head, embed)
        return embed if tied else head

    def _matrix(self, prefix: str, group: str) -> torch.Tensor:
        return self._fused(prefix, group, "weight", (self.base.group_in(group),))

    def _bias(self, prefix: str, group: str) -> torch.Tensor | None:
        return self._fused(prefix, group, "bias", ()) if self.base.group_bias(group) else None

    def _fused(self, prefix: str, group: str, kind: str, trailing: tuple[int, ...]) -> torch.Tensor:
        sizes = self.base.slice_sizes(group)
        fused = torch.empty((sum(sizes), *trailing), dtype=self.dtype, device=self.device)
        for name, part in zip(PROJECTION_GROUPS[group], fused.split(sizes), strict=True):
            self.files.copy(f"{prefix}.{_MODULES[group]}.{name}.{kind}", part)
        return fused

    def _qk_norm(self, prefix: str) -> torch.Tensor | None:
        base = self.base
        if not base.qk_norm:
            return None
        q = self.read(f"{prefix}.self_attn.q_norm.weight", base.head_dim)
        k = self.read(f"{prefix}.self_attn.k_norm.weight", base.head_dim)
        return torch.cat((q.expand(base.num_heads, -1), k.expand(base.num_kv_heads, -1)))
