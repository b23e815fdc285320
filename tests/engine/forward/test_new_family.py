"""A family that transformers knows needs nothing of this repository: here it is this test's own."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from multilora.base_model.sites import short_names
from multilora.forward.base_model import load_base_model, read_base
from support.engine.passes import CPU, assert_same_logits
from support.tiny.families import VOCAB

HEADS, KV_HEADS, HEAD_DIM, VALUE_DIM, HIDDEN = 6, 2, 8, 12, 40


class PlainConfig(PreTrainedConfig):
    """Learned positions, heads of V wider than those of K, one matrix for q, k and v."""

    model_type = "plain_test_family"
    vocab_size: int = VOCAB
    num_hidden_layers: int = 2
    hidden_size: int = HIDDEN
    max_position_embeddings: int = 64


class PlainAttention(nn.Module):
    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.config = config
        self.is_causal = True
        self.num_key_value_groups = HEADS // KV_HEADS
        width = HEADS * HEAD_DIM + KV_HEADS * (HEAD_DIM + VALUE_DIM)
        self.mixed = nn.Linear(HIDDEN, width)
        self.out = nn.Linear(HEADS * VALUE_DIM, HIDDEN)

    def forward(self, x: torch.Tensor, mask: Any, **more: Any) -> torch.Tensor:
        parts = self.mixed(x).split(
            (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * VALUE_DIM), dim=-1
        )
        sizes = (HEAD_DIM, HEAD_DIM, VALUE_DIM)
        heads = (
            part.unflatten(-1, (-1, size)).transpose(1, 2)
            for part, size in zip(parts, sizes, strict=True)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            str(self.config._attn_implementation), eager_attention_forward
        )
        found, _ = attend(self, *heads, mask, scaling=0.4, dropout=0.0, **more)
        return self.out(found.flatten(-2))


class PlainLayer(nn.Module):
    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.attention = PlainAttention(config)
        self.widen, self.narrow = nn.Linear(HIDDEN, 64), nn.Linear(64, HIDDEN)

    def forward(self, x: torch.Tensor, mask: Any, **more: Any) -> torch.Tensor:
        x = x + self.attention(x, mask, **more)
        return x + self.narrow(self.widen(x).relu())


class PlainPreTrained(PreTrainedModel):
    config_class = PlainConfig
    base_model_prefix = "body"


class PlainModel(PlainPreTrained):
    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.tokens = nn.Embedding(config.vocab_size, HIDDEN)
        self.places = nn.Embedding(config.max_position_embeddings, HIDDEN)
        self.layers = nn.ModuleList(PlainLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **more: Any,
    ) -> BaseModelOutputWithPast:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x = self.tokens(input_ids) + self.places(position_ids)
        mask = create_causal_mask(self.config, x, attention_mask, None, position_ids)
        for layer in self.layers:
            x = layer(x, mask, **more)
        return BaseModelOutputWithPast(last_hidden_state=x)


class PlainForCausalLM(PlainPreTrained, GenerationMixin):
    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.body = PlainModel(config)
        self.head = nn.Linear(HIDDEN, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Any = None, **inputs: Any) -> CausalLMOutputWithPast:
        hidden = self.body(input_ids=input_ids, **inputs).last_hidden_state
        return CausalLMOutputWithPast(logits=3 * self.head(hidden).tanh())


def test_a_class_of_somebody_else(tmp_path: Path) -> None:
    AutoConfig.register(PlainConfig.model_type, PlainConfig)
    AutoModelForCausalLM.register(PlainConfig, PlainForCausalLM)
    theirs = PlainForCausalLM._from_config(PlainConfig(), attn_implementation="eager").eval()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(std=0.15, generator=noise)
    theirs.save_pretrained(tmp_path)
    base = read_base(tmp_path, "auto")
    assert (base.head_dim, base.value_dim, base.num_layers) == (HEAD_DIM, VALUE_DIM, 2)
    assert short_names(base.sites) == ["mixed", "out", "widen", "narrow"]
    model = load_base_model(tmp_path, base, torch.float32, CPU, 64)
    assert_same_logits(theirs, model)
