"""Llama: the decoder of Llama, Mistral, Qwen2 and Qwen3 over a paged KV cache, with LoRA.

The batch is an argument: rows of many sequences, prefill and decode mixed, each row with the
adapter that `segments` gives it. As in PEFT, an adapter acts on a projection's output before QK
norm and RoPE.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from multilora.base_model.config import BaseConfig
from multilora.base_model.weights import LayerWeights, Weights, load_weights
from multilora.errors import StartupError
from multilora.forward.kv_cache import KVCache
from multilora.forward.rope import rope_table
from multilora.forward.step_input import ForwardInput
from multilora.lora.adapter_pages import AdapterPages
from multilora.lora.linear import BatchLoRA, add_lora_linear, lora_linear
from multilora.lora.plan import DEFAULT_PLAN, LoRAPlan
from multilora_kernels.paged_attention import paged_attention
from multilora_kernels.paged_context import PagedContext
from multilora_kernels.rms_norm import rms_norm
from multilora_kernels.rope_kv_write import rope_kv_write
from multilora_kernels.swiglu import swiglu


class _Pass(NamedTuple):
    """What every layer of one forward pass shares."""

    inp: ForwardInput
    kv: KVCache
    lora: BatchLoRA | None
    rope: torch.Tensor  # [T, 2, head_dim], see rope_table
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
        self,
        inp: ForwardInput,
        kv: KVCache,
        adapters: AdapterPages | None,
        plan: LoRAPlan = DEFAULT_PLAN,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits, float32 [N, vocab], of the rows `inp.last_token_indices`; into `out` if given.

        Writes K and V of all rows into `kv` at `inp.kv_slots`. `adapters` holds the pages that
        `inp.segments` names.
        """
        if inp.segments is not None and adapters is None:
            raise ValueError("the batch has adapter rows but no adapter pages were given")
        lora = BatchLoRA(adapters, inp.segments, plan) if adapters and inp.segments else None
        weights, eps = self._weights, self.base.rms_norm_eps
        x = F.embedding(inp.input_ids, weights.embed)
        context = PagedContext(inp.cu_seqlens_q, inp.context_lens, inp.block_tables)
        step = _Pass(inp, kv, lora, self._rope.index_select(0, inp.positions), context)
        for index, layer in enumerate(weights.layers):
            attended = self._attention(index, layer, rms_norm(x, layer.input_norm, eps), step)
            add_lora_linear(x, attended, layer.o, layer.o_bias, lora, index, "o")
            inner = self._mlp(index, layer, rms_norm(x, layer.post_norm, eps), step)
            add_lora_linear(x, inner, layer.down, layer.down_bias, lora, index, "down")
        last = x.index_select(0, inp.last_token_indices)
        logits = F.linear(rms_norm(last, weights.norm, eps), weights.lm_head)
        return logits.float() if out is None else out.copy_(logits)

    def _attention(
        self, index: int, layer: LayerWeights, x: torch.Tensor, step: _Pass
    ) -> torch.Tensor:
        """[T, heads * head_dim], before the output projection."""
        base, inp = self.base, step.inp
        k_cache, v_cache = step.kv.k[index], step.kv.v[index]
        qkv = lora_linear(x, layer.qkv, layer.qkv_bias, step.lora, index, "qkv")
        q = rope_kv_write(
            qkv.y,
            step.rope,
            inp.kv_slots,
            k_cache,
            v_cache,
            base.num_heads,
            base.num_kv_heads,
            layer.qk_norm,
            base.rms_norm_eps,
            qkv.update,
        )
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
            context=step.context,
            has_decode=inp.has_decode,
            has_prefill=inp.has_prefill,
        )
        return attended.reshape(x.shape[0], -1)

    def _mlp(self, index: int, layer: LayerWeights, x: torch.Tensor, step: _Pass) -> torch.Tensor:
        """[T, intermediate], before the down projection."""
        fused = lora_linear(x, layer.gate_up, layer.gate_up_bias, step.lora, index, "gate_up")
        return swiglu(fused.y, fused.update)


def load_llama(folder: Path, base: BaseConfig, dtype: torch.dtype, device: torch.device) -> Llama:
    """The model of a checkpoint folder; StartupError names what is missing, wrong or too large."""
    try:
        return Llama(base, load_weights(folder, base, dtype, device), device)
    except torch.OutOfMemoryError:
        raise StartupError(
            f"{folder} as {dtype} does not fit on {device}; choose a smaller base model or dtype"
        ) from None
