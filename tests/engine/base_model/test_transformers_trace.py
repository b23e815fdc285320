"""What a class does in a pass, and what of it the engine cannot compute: a Llama with a change."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaForCausalLM, LlamaModel

from multilora.base_model.transformers_config import TransformersConfig
from multilora.errors import StartupError
from support.tiny.families import make_model


def call_with(monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Has the class give attention more arguments."""
    forward = LlamaAttention.forward
    monkeypatch.setattr(
        LlamaAttention, "forward", lambda *own, **given: forward(*own, **(given | more))
    )


def make_with(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], object]) -> None:
    """Has the class change its layers once they are made."""
    init = LlamaModel.__init__

    def changed(self: Any, config: Any) -> None:
        init(self, config)
        change(self.layers)

    monkeypatch.setattr(LlamaModel, "__init__", changed)


class Idle(nn.Module):
    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return hidden_states, None


def own_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    call_with(monkeypatch, attention_mask=torch.ones(1, 1, 3, 3, device="meta"))


def other_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def even(_: Any, __: Any, ___: Any, key: torch.Tensor) -> torch.Tensor:
        return key % 2 == 0

    made = functools.partial(create_causal_mask, and_mask_function=even)
    monkeypatch.setattr(modeling_llama, "create_causal_mask", made)


def bias_of_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    call_with(monkeypatch, position_bias=torch.ones(1, 4, 3, 3, device="meta"))


def both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    call_with(monkeypatch, is_causal=False)


def both_ways_by_module(monkeypatch: pytest.MonkeyPatch) -> None:
    make_with(monkeypatch, lambda layers: setattr(layers[1].self_attn, "is_causal", False))


def more_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = modeling_llama.apply_rotary_pos_emb

    def twice(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = turned(*given)
        return q, k.repeat(1, 1, 2, 1)

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", twice)


def shared_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    make_with(monkeypatch, lambda layers: setattr(layers[1], "self_attn", layers[0].self_attn))


def idle_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    make_with(monkeypatch, lambda layers: setattr(layers[1], "self_attn", Idle()))


def heads_of_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(layers: Any) -> None:
        config = copy.deepcopy(layers[1].self_attn.config)
        config.num_key_value_heads = 1
        layers[1].self_attn = LlamaAttention(config, 1)

    make_with(monkeypatch, change)


def convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    make_with(monkeypatch, lambda layers: setattr(layers[1], "mixer", nn.Conv1d(8, 8, 3)))


def no_layers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "base_model_prefix", "transformer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (own_mask, "makes a mask of its own"),
        (other_mask, "has attention that is neither causal nor of a sliding window"),
        (bias_of_positions, "gives attention an argument that is not supported: position_bias"),
        (both_ways, "has attention that is not causal"),
        (both_ways_by_module, "has attention that is not causal"),
        (more_keys, "attends to other rows than those of the pass"),
        (shared_attention, "has layers that share an attention"),
        (idle_layer, "has 2 layers, but 1 attend"),
        (convolution, "keeps a state besides keys and values (Mamba, linear attention)"),
        (no_layers_of_their_own, "has no layers apart from its head"),
        (heads_of_other_sizes, "has layers with heads of different numbers or sizes"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
    message: str,
) -> None:
    make_model("llama", num_hidden_layers=2).config.save_pretrained(tmp_path)
    assert TransformersConfig.from_folder(tmp_path)
    change(monkeypatch)
    with pytest.raises(StartupError) as caught:
        TransformersConfig.from_folder(tmp_path)
    start = f"{tmp_path / 'config.json'}: LlamaForCausalLM {message}, which is not supported; serve"
    assert str(caught.value).startswith(start)


def test_the_mask_counts_and_not_what_is_said_of_a_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the library's own functions."""

    def windows() -> list[int | None]:
        make_model("llama", num_hidden_layers=2, sliding_window=8).config.save_pretrained(tmp_path)
        return [shape.window for shape in TransformersConfig.from_folder(tmp_path).attention]

    call_with(monkeypatch, sliding_window=4)
    assert windows() == [None, None]
    monkeypatch.setattr(modeling_llama, "create_causal_mask", create_sliding_window_causal_mask)
    assert windows() == [8, 8]
    call_with(monkeypatch, attention_mask=None)
    assert windows() == [4, 4]
