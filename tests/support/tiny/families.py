"""Small random checkpoints of every architecture and variant, written by transformers itself."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from support.kernels.cases import INTERPRETED

VOCAB = 128
WINDOW = 6
_LAYERS = "num_hidden_layers"
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    _LAYERS: 2 if INTERPRETED else 3,  # the interpreter is slow
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_CLASSES = {  # of transformers: …Config and …ForCausalLM
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
    "gemma3": "Gemma3",
    "phi3": "Phi3",
    "granite": "Granite",
    "olmo2": "Olmo2",
    "cohere2": "Cohere2",
    "glm4": "Glm4",
    "smollm3": "SmolLM3",
    "starcoder2": "Starcoder2",
    "stablelm": "StableLm",
    "ministral": "Ministral",
    "exaone4": "Exaone4",
    "nemotron": "Nemotron",
    "mixtral": "Mixtral",
    "qwen2_moe": "Qwen2Moe",
    "qwen3_moe": "Qwen3Moe",
    "gpt_oss": "GptOss",
    "deepseek_v3": "DeepseekV3",
}
_CONFIGS = {"gemma3": "Gemma3Text"}  # where it has another name
_NAMES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3 (text)",
    "phi3": "Phi-3, Phi-4",
    "granite": "Granite",
    "olmo2": "OLMo 2",
    "cohere2": "Command R7B, A (Cohere 2)",
    "glm4": "GLM-4",
    "smollm3": "SmolLM3",
    "starcoder2": "StarCoder2",
    "stablelm": "StableLM",
    "ministral": "Ministral",
    "exaone4": "EXAONE 4",
    "nemotron": "Nemotron",
    "mixtral": "Mixtral",
    "qwen2_moe": "Qwen2-MoE",
    "qwen3_moe": "Qwen3-MoE",
    "gpt_oss": "gpt-oss",
    "deepseek_v3": "DeepSeek-V3",
}


def _rope(rope_type: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 1000.0, **values}}


VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-biases": {"attention_bias": True, "mlp_bias": True},
    "llama-head-dim": {"head_dim": 32, "num_key_value_heads": 1},
    "llama-linear": _rope("linear", factor=4.0),
    "llama-llama3": _rope(
        "llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
    "llama-yarn": _rope("yarn", factor=4.0, original_max_position_embeddings=32),
    "llama-yarn-mscale": _rope(
        "yarn",
        factor=4.0,
        original_max_position_embeddings=32,
        mscale=0.7,
        mscale_all_dim=1.3,
        beta_fast=8.0,
        truncate=False,
    ),
    "mistral": {"sliding_window": None},
    "mistral-window": {"sliding_window": WINDOW},
    "qwen2": {"tie_word_embeddings": True},
    "qwen2-window": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
    },
    "qwen2-layer-types": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen3": {"head_dim": 32},
    "qwen3-biases": {"head_dim": 16, "attention_bias": True},
}

_LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"][: _SIZES[_LAYERS]]
_SLIDING: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": _LAYER_TYPES}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_LONGROPE = _rope(
    "longrope",
    short_factor=[1.0, 1.5, 2.0, 2.5, 3.0, 3.5],
    long_factor=[1.0, 2.0, 4.0, 8.0, 12.0, 16.0],
    partial_rotary_factor=0.75,
)
# Families that a class of transformers computes; those above it may compute, too.
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
        **_SLIDING,
    },
    "gemma3": {
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
        },
        **_SLIDING,
    },
    "phi3": {"sliding_window": WINDOW},
    "phi3-long": {"original_max_position_embeddings": 4, **_LONGROPE},
    "granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 0.5,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
        "attention_bias": True,
    },
    "olmo2": {},
    "cohere2": {"logit_scale": 0.5, **_SLIDING},
    "glm4": {"head_dim": 16, "partial_rotary_factor": 0.5, "attention_bias": True},
    "smollm3": {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, **_SLIDING},
    "starcoder2": {"sliding_window": WINDOW, "use_bias": True},
    "stablelm": {
        "partial_rotary_factor": 0.25,
        "use_qkv_bias": True,
        "qk_layernorm": True,
        "use_parallel_residual": True,
    },
    "ministral": {**_SLIDING, "head_dim": 32},
    "exaone4": {**_SLIDING, "sliding_window_pattern": 2},
    "nemotron": {"partial_rotary_factor": 0.5, "mlp_bias": True, "attention_bias": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    "qwen2_moe": {
        **_EXPERTS,
        "shared_expert_intermediate_size": 40,
        "decoder_sparse_step": 2,
        "use_sliding_window": True,
        **_SLIDING,
    },
    "qwen3_moe": {**_EXPERTS, "head_dim": 32, "mlp_only_layers": [1], "norm_topk_prob": True},
    "deepseek_v3": {  # V with heads of another size than K
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 48,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, **_SLIDING},
}


def families_table() -> str:
    """The families that tests compare with transformers, as README.md has them."""
    lines = ["| Family | Class | Computed by |", "|---|---|---|"]
    for family in dict.fromkeys(name.partition("-")[0] for name in VARIANTS | FAMILIES):
        by = "ours" if family in VARIANTS else "that class"
        lines.append(f"| {_NAMES[family]} | `{_CLASSES[family]}ForCausalLM` | {by} |")
    return "\n".join(lines)


def make_model(variant: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """float32, every parameter random (transformers leaves biases 0 and norms 1)."""
    family = variant.split("-")[0]
    config_class = getattr(transformers, f"{_CONFIGS.get(family, _CLASSES[family])}Config")
    model_class = getattr(transformers, f"{_CLASSES[family]}ForCausalLM")
    # Only their eager attention has soft caps and sinks.
    config = config_class(**_SIZES | (VARIANTS | FAMILIES)[variant] | changes)
    model = model_class._from_config(config, attn_implementation="eager").eval()
    return randomised(model, seed)


def randomised(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.15, generator=noise)
            if "norm" in name:
                weight += 1
    return model


def write_model(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder
