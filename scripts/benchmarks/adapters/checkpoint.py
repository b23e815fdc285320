"""The benchmarks' checkpoints: a Llama-shaped base model of random weights, PEFT adapters on it.

Everything is seeded and kept in a cache folder, so a second run finds the same files in place.
Many adapters share few files by hard links: to the engine each name is an adapter of its own.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from launcher.repository import REPOSITORY

CACHE = REPOSITORY / ".cache" / "bench"
RANK = 16
BOS, EOS = 256, 257  # of the demo's byte tokenizer
_DEMO_BASE = REPOSITORY / "model_repository/multilora_llm/1/demo/base"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_FORMAT = 1  # to be raised when other files are written for the same shape
_DISTINCT = 8  # adapters that differ in their weights
_SEED = 7


@dataclass(frozen=True)
class Shape:
    """Sizes of a base model with tied embeddings, in elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int = 4096

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) of each projection of a layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (heads, hidden),
            "self_attn.k_proj": (kv_heads, hidden),
            "self_attn.v_proj": (kv_heads, hidden),
            "self_attn.o_proj": (hidden, heads),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }

    @property
    def num_parameters(self) -> int:
        layer = sum(rows * columns for rows, columns in self.projections.values())
        norms = (2 * self.num_layers + 1) * self.hidden_size
        return self.vocab_size * self.hidden_size + self.num_layers * layer + norms

    @property
    def adapter_parameters(self) -> int:
        """Of rank RANK on every projection."""
        return RANK * self.num_layers * sum(map(sum, self.projections.values()))


LLAMA_100M = Shape(32000, 768, 2048, 12, 12, 4, 64)  # 100 092 672 parameters
TINY = Shape(272, 64, 96, 2, 4, 2, 16)


class Checkpoints:
    """The files of one shape below `cache`, written when they are first asked for."""

    def __init__(self, shape: Shape, cache: Path = CACHE) -> None:
        self.shape = shape
        content = json.dumps([_FORMAT, _SEED, _DISTINCT, RANK, asdict(shape)])
        self._folder = cache / hashlib.sha256(content.encode()).hexdigest()[:12]

    def base(self) -> Path:
        """The folder of the base model."""
        return self._once("base", lambda folder: _write_base(folder, self.shape))

    def adapters(self, count: int) -> Path:
        """A folder of `count` adapters; see adapter_name."""

        def link(folder: Path) -> None:
            for index in range(count):
                target = folder / adapter_name(index)
                target.mkdir()
                for path in sorted(self._weights(index % _DISTINCT).iterdir()):
                    os.link(path, target / path.name)

        return self._once(f"adapters-{count}", link)

    def _weights(self, seed: int) -> Path:
        return self._once(f"weights-{seed}", lambda it: _write_adapter(it, self.shape, seed))

    def _once(self, name: str, write: Callable[[Path], None]) -> Path:
        """The folder `name`; what was interrupted is written again."""
        folder, partial = self._folder / name, self._folder / f"{name}.partial"
        if not folder.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write(partial)
            partial.rename(folder)
        return folder


def adapter_name(index: int) -> str:
    return f"a{index:04}"


def _write_base(folder: Path, shape: Shape) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": shape.context,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "float32",
    }
    _write_json(folder / "config.json", config)
    for name in _TOKENIZER_FILES:
        shutil.copy(_DEMO_BASE / name, folder / name)
    noise = torch.Generator().manual_seed(_SEED)
    tensors = {
        "model.embed_tokens.weight": _normal(shape.vocab_size, shape.hidden_size, noise),
        "model.norm.weight": torch.ones(shape.hidden_size),
    }
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}"
        for name, (rows, columns) in shape.projections.items():
            tensors[f"{prefix}.{name}.weight"] = _normal(rows, columns, noise)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = torch.ones(shape.hidden_size)
    save_file(tensors, folder / "model.safetensors")


def _write_adapter(folder: Path, shape: Shape, seed: int) -> None:
    """As PEFT saves it: float32, A and B of each module."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "bias": "none",
        "target_modules": [name.split(".")[1] for name in shape.projections],
    }
    _write_json(folder / "adapter_config.json", config)
    noise = torch.Generator().manual_seed(_SEED + 1 + seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(shape.num_layers):
        for name, (rows, columns) in shape.projections.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = _normal(RANK, columns, noise)
            tensors[f"{prefix}.lora_B.weight"] = _normal(rows, RANK, noise) * 0.1
    save_file(tensors, folder / "adapter_model.safetensors")


def _normal(rows: int, columns: int, noise: torch.Generator) -> torch.Tensor:
    """Of variance 1 / columns, so that activations keep their size from layer to layer."""
    return torch.randn(rows, columns, generator=noise) / math.sqrt(columns)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
