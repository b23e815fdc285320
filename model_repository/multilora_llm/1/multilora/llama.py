"""Llama: the decoder of Llama, Mistral, Qwen2 and Qwen3 over a paged KV cache, with LoRA.

The batch is an argument: rows of many sequences, prefill and decode mixed, each row with the
adapter that `segments` gives it. As in PEFT, an adapter acts on a projection's output before QK
norm and RoPE.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from multilora.adapter_pages import AdapterPages
from multilora.base_config import BaseConfig
from multilora.errors import StartupError
from multilora.forward_input import ForwardInput
from multilora.kv_cache import KVCache
from multilora.lora_linear import lora_linear
from multilora.rope import apply_rope, rope_table
from multilora.weights import LayerWeights, Weights, load_weights
from multilora_kernels.kv_write import kv_write
from multilora_kernels.paged_attention import paged_attention
from multilora_kernels.paged_context import PagedContext


class _Pass(NamedTuple):
    """What every layer of one forward pass shares."""

    inp: ForwardInput
    kv: KVCache
    adapters: AdapterPages | None
    cos: torch.Tensor  # [T, 1, head_dim]
    sin: torch.Tensor  # [T, 1, head_dim], see rope_table
    context: PagedContext


class Llama:
    """Weights and RoPE table on the device; holds no state of any batch."""

    def __init__(self, base: BaseConfig, weights: Weights, device: torch.device) -> None:
        self.base = base
        self._weights = weights
        self._rope = rope_table(
            base.rope, base.head_dim, base.max_position_embeddings, weights.embed.dtype, device
        )

    @torch.inference_mode()
    def forward(
        self, inp: ForwardInput, kv: KVCache, adapters: AdapterPages | None
    ) -> torch.Tensor:
        """Logits, float32 [N, vocab], of the rows `inp.last_token_indices`.

        Writes K and V of all rows into `kv` at `inp.kv_slots`. `adapters` holds the pages that
        `inp.segments` names.
        """
        if inp.segments is not None and adapters is None:
            raise ValueError("the batch has adapter rows but no adapter pages were given")
        weights = self._weights
        x = F.embedding(inp.input_ids, weights.embed)
        cos, sin = self._rope.index_select(0, inp.positions).split(1, dim=1)
        context = PagedContext(inp.cu_seqlens_q, inp.context_lens, inp.block_tables)
        step = _Pass(inp, kv, adapters, cos, sin, context)
        for index, layer in enumerate(weights.layers):
            x += self._attention(index, layer, self._norm(x, layer.input_norm), step)
            x += self._mlp(index, layer, self._norm(x, layer.post_norm), step)
        last = x.index_select(0, inp.last_token_indices)
        return F.linear(self._norm(last, weights.norm), weights.lm_head).float()

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self.base.rms_norm_eps)

    def _attention(
        self, index: int, layer: LayerWeights, x: torch.Tensor, step: _Pass
    ) -> torch.Tensor:
        base, (inp, kv, adapters, cos, sin, context) = self.base, step
        qkv = lora_linear(x, layer.qkv, layer.qkv_bias, index, "qkv", adapters, inp.segments)
        heads = qkv.view(x.shape[0], -1, base.head_dim)
        qk, v = heads.split((base.num_heads + base.num_kv_heads, base.num_kv_heads), dim=1)
        if layer.qk_norm is not None:
            qk = F.rms_norm(qk, (base.head_dim,), eps=base.rms_norm_eps) * layer.qk_norm
        q, k = apply_rope(qk, cos, sin).split((base.num_heads, base.num_kv_heads), dim=1)
        k_cache, v_cache = kv.k[index], kv.v[index]
        kv_write(k, v, k_cache, v_cache, inp.kv_slots)
        attended = paged_attention(
            q,
            k_cache,
            v_cache,
            inp.cu_seqlens_q,
            inp.context_lens,
            inp.block_tables,
            scale=base.head_dim**-0.5,
            max_seqlen_q=inp.max_seqlen_q,
            max_context_len=inp.max_context_len,
            sliding_window=base.layer_windows[index],
            context=context,
        )
        rows = attended.reshape(x.shape[0], -1)
        return lora_linear(rows, layer.o, layer.o_bias, index, "o", adapters, inp.segments)

    def _mlp(self, index: int, layer: LayerWeights, x: torch.Tensor, step: _Pass) -> torch.Tensor:
        adapters, segments = step.adapters, step.inp.segments
        fused = lora_linear(
            x, layer.gate_up, layer.gate_up_bias, index, "gate_up", adapters, segments
        )
        gate, up = fused.chunk(2, dim=-1)
        inner = F.silu(gate) * up
        return lora_linear(inner, layer.down, layer.down_bias, index, "down", adapters, segments)


def load_llama(folder: Path, base: BaseConfig, dtype: torch.dtype, device: torch.device) -> Llama:
    """The model of a checkpoint folder; StartupError names what is missing, wrong or too large."""
    try:
        return Llama(base, load_weights(folder, base, dtype, device), device)
    except torch.OutOfMemoryError:
        raise StartupError(
            f"{folder} as {dtype} does not fit on {device}; choose a smaller base model or dtype"
        ) from None
