"""Small random checkpoints of every architecture and variant, written by transformers itself."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from support.kernels.cases import INTERPRETED

VOCAB = 128
WINDOW = 6
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2 if INTERPRETED else 3,  # the interpreter is slow
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def _rope(rope_type: str, **values: float) -> dict[str, Any]:
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


def make_model(variant: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """float32, every parameter random (transformers leaves biases 0 and norms 1)."""
    config_class, model_class = _CLASSES[variant.split("-")[0]]
    config = config_class(**_SIZES | VARIANTS[variant] | changes)
    model = model_class(config).eval()
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
