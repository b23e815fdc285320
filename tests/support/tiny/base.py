"""Random checkpoints small enough for tests: a Llama-shaped base and PEFT adapters on it."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

VOCAB, HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 128, 64, 96, 2, 4, 2, 16
EOS = 1
SHAPES = {  # (out, in) as nn.Linear keeps its weight
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}


def write_base(folder: Path, seed: int = 0) -> Path:
    """A Hugging Face checkpoint folder with seeded random float32 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": EOS,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    noise = torch.Generator().manual_seed(seed)
    tensors = {"model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN, generator=noise)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name, shape in SHAPES.items():
            weight = torch.randn(*shape, generator=noise) * 0.15
            tensors[f"{prefix}.{name}.weight"] = weight
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = torch.ones(HIDDEN)
    tensors["model.norm.weight"] = torch.ones(HIDDEN)
    save_file(tensors, folder / "model.safetensors")
    return folder


TABLES = {  # what PEFT calls the factors of the modules with a row for each token, and their shapes
    "embed_tokens": ("model.embed_tokens.lora_embedding_{}", (HIDDEN, VOCAB)),
    "lm_head": ("lm_head.lora_{}.weight", (VOCAB, HIDDEN)),
}


def write_adapter(
    folder: Path,
    seed: int,
    rank: int = 8,
    modules: Sequence[str] = tuple(SHAPES),
    tables: Sequence[str] = (),
) -> Path:
    """A PEFT folder whose adapter clearly changes the base model's output."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "bias": "none",
        "target_modules": [*(name.split(".")[1] for name in modules), *tables],
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    noise = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name in modules:
            rows, columns = SHAPES[name]
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            lora_a = torch.randn(rank, columns, generator=noise) / rank
            tensors[f"{prefix}.lora_A.weight"] = lora_a
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(rows, rank, generator=noise) * 0.3
    for name in tables:
        path, (rows, columns) = TABLES[name]
        path = f"base_model.model.{path}"
        tensors[path.format("A")] = torch.randn(rank, columns, generator=noise) / rank
        tensors[path.format("B")] = torch.randn(rows, rank, generator=noise) * 0.3
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
