"""What a traced class shows of itself, and what is refused before any weight is read."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from multilora.base_model.config import NativeConfig
from multilora.base_model.sites import TABLES, LoRASite, Slice, modules, short_names
from multilora.base_model.transformers_config import TransformersConfig
from multilora.base_model.transformers_trace import is_window
from multilora.errors import StartupError
from support.tiny.families import FAMILIES, WINDOW, families_table, make_model

SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
DEEPSEEK = FAMILIES["deepseek_v3"]
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1000.0}
MROPE = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [1, 1, 2]}


def trace(folder: Path, variant: str, **changes: Any) -> TransformersConfig:
    make_model(variant, **changes).config.save_pretrained(folder)
    return TransformersConfig.from_folder(folder)


def read(folder: Path, model_type: str, **fields: Any) -> TransformersConfig:
    (folder / "config.json").write_text(json.dumps(SMALL | {"model_type": model_type} | fields))
    return TransformersConfig.from_folder(folder)


def refusal(folder: Path, model_type: str, **fields: Any) -> str:
    with pytest.raises(StartupError) as caught:
        read(folder, model_type, **fields)
    assert str(folder / "config.json") in str(caught.value)
    return str(caught.value)


def test_a_native_family_looks_the_same_either_way(tmp_path: Path) -> None:
    traced = trace(tmp_path, "qwen2-layer-types")
    native = NativeConfig.from_folder(tmp_path)
    for name in ("architecture", "vocab_size", "hidden_size", "num_layers", "num_heads",
                 "num_kv_heads", "head_dim", "value_dim", "max_position_embeddings",
                 "tie_word_embeddings", "dtype"):  # fmt: skip
        assert getattr(traced, name) == getattr(native, name)
    assert [shape.window for shape in traced.attention] == list(native.layer_windows)
    places = [
        {path: (site.layer, site.in_features, part.out_features, site.has_bias)
         for path, (site, part) in modules(base.sites).items()}
        for base in (traced, native)
    ]  # fmt: skip
    assert places[0] == places[1]
    tables = [
        [site for site in base.with_places(TABLES).sites if site.layer is None]
        for base in (traced, native)
    ]
    assert tables[0] == tables[1] and len(tables[0]) == 2
    slices = [[site.slices for site in base.sites] for base in (traced, native)]
    assert slices[0] == slices[1], "in the order of the pass, those that share an input together"


def test_sizes_windows_and_fused_modules(tmp_path: Path) -> None:
    phi = trace(tmp_path, "phi3")
    assert [shape.window for shape in phi.attention] == [WINDOW] * phi.num_layers
    assert {
        part.short_name: (site.in_features, part.out_features)
        for site in phi.sites
        for part in site.slices
    } == {"qkv_proj": (64, 128), "o_proj": (64, 64), "gate_up_proj": (64, 192),
          "down_proj": (96, 64)}  # fmt: skip
    deepseek = trace(tmp_path, "deepseek_v3")
    assert (deepseek.head_dim, deepseek.value_dim, deepseek.num_kv_heads) == (24, 16, 4)


def test_an_input_that_was_written_to_is_another_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj(x)
        return self.down_proj(gate * self.up_proj(x.mul_(2)))

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    sites = trace(tmp_path, "llama").sites
    assert [short_names([site]) for site in sites[:5]] == [
        ["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj"], ["up_proj"], ["down_proj"]
    ]  # fmt: skip


def test_a_class_that_takes_no_views_has_a_site_for_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.gate_proj(x).view(-1).view(*x.shape[:-1], -1) * self.up_proj(x))

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    assert all(len(site.slices) == 1 for site in trace(tmp_path, "llama").sites)


def test_a_site_has_biases_everywhere_or_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = LlamaAttention.__init__

    def init(self: Any, *given: Any, **options: Any) -> None:
        made(self, *given, **options)
        self.v_proj = torch.nn.Linear(self.v_proj.in_features, self.v_proj.out_features)

    monkeypatch.setattr(LlamaAttention, "__init__", init)
    sites = trace(tmp_path, "llama").sites[:3]
    assert [short_names([site]) for site in sites] == [["q_proj", "k_proj"], ["v_proj"], ["o_proj"]]
    assert [site.has_bias for site in sites] == [False, True, False]


def test_modules_that_see_rows_twice_or_not_all_are_no_sites(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj(x) + self.gate_proj(x + 1)
        return self.down_proj(gate * self.up_proj(x[:, -1:]))

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    names = short_names(trace(tmp_path, "llama").sites)
    assert names == ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]


def test_a_site_has_no_more_slices_than_kernels_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.gate_proj(x) * self.up_proj(x) * self.a(x) * self.b(x))

    made = LlamaMLP.__init__

    def init(self: Any, config: Any) -> None:
        made(self, config)
        self.a, self.b = (nn.Linear(64, 96, bias=False) for _ in "ab")

    monkeypatch.setattr(LlamaMLP, "__init__", init)
    monkeypatch.setattr(LlamaMLP, "forward", forward)
    sites = trace(tmp_path, "llama").sites[2:5]
    assert [short_names([site]) for site in sites] == [
        ["gate_proj", "up_proj", "a"], ["b"], ["down_proj"]
    ]  # fmt: skip


def test_a_head_with_a_bias_is_no_place_for_adapters(tmp_path: Path) -> None:
    traced = read(tmp_path, "phi")
    assert traced.with_places(TABLES).adapted == ("embed_tokens",)


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        ({"rope_type": "dynamic", "factor": 3.0}, 192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "yarn", "factor": 1.5, "original_max_position_embeddings": 32}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 64),
    ],
)
def test_the_longest_sequence(tmp_path: Path, rope: dict[str, Any], longest: int) -> None:
    traced = read(tmp_path, "llama", rope_parameters={"rope_theta": 1000.0, **rope})
    assert traced.max_position_embeddings == longest


def test_fields_that_would_change_what_a_class_gives(tmp_path: Path) -> None:
    fields = {"output_router_logits": True, "output_hidden_states": True, "return_dict": False}
    library = read(tmp_path, "mixtral", **fields).library
    assert not library.output_router_logits and not library.output_hidden_states
    assert library.return_dict


def test_what_the_text_part_has_of_the_whole_model(tmp_path: Path) -> None:
    quantised = {"quant_method": "fp8", "weight_block_size": [8, 8]}
    text = {name: size for name, size in SMALL.items() if name != "pad_token_id"}
    traced = read(
        tmp_path, "gemma3", text_config={**text, "head_dim": 8}, quantization_config=quantised,
        vision_config={"hidden_size": 16}, tie_word_embeddings=False, torch_dtype="float16",
    )  # fmt: skip
    assert (traced.dtype, traced.tie_word_embeddings) == ("float16", False)
    assert traced.library.quantization_config == quantised


def test_what_is_no_config(tmp_path: Path) -> None:
    for text, message in (("{", "not valid JSON"), ("[]", "must hold a JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(StartupError, match=rf"config\.json: {message}.* download it again"):
            TransformersConfig.from_folder(tmp_path)


def test_a_mask_that_no_layer_uses_does_not_count(tmp_path: Path) -> None:
    """Qwen2-MoE asks for a window of no tokens, too, where none of its layers has one."""
    traced = trace(tmp_path, "qwen2_moe", use_sliding_window=False, layer_types=None)
    assert [shape.window for shape in traced.attention] == [None] * traced.num_layers


def test_experts_and_routers_are_places_where_somebody_uses_them(tmp_path: Path) -> None:
    base = trace(tmp_path, "qwen3_moe")
    plain = set(modules(base.sites))
    assert not any("experts" in name or "gate.weight" in name for name in plain)
    assert "model.layers.1.mlp.down_proj" in plain, "the layer without experts"
    own = ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
    assert base.optional == ("embed_tokens", "lm_head", *own)
    block = "model.layers.2.mlp."
    router, gate_up, down = base.with_places(own).parameter_sites[3:]
    assert router == LoRASite(f"{block}{own[0]}", 2, 64, (Slice(f"{block}{own[0]}", 4, True),))
    assert gate_up == LoRASite(
        f"{block}{own[1]}", 2, 64, (Slice(f"{block}{own[1]}", 96, True),), experts=4
    )
    assert (down.in_features, down.out_features, down.experts) == (48, 64, 4)
    numbers = 64 + 4 + 4 * (64 + 96 + 48 + 64)
    assert sum(site.numbers_per_rank for site in (router, gate_up, down)) == numbers
    half = base.with_places(["experts.down_proj", "w2"])
    assert short_names(half.parameter_sites) == ["experts.down_proj"]
    assert [site.layer for site in half.sites] == sorted(site.layer or 0 for site in half.sites)


def test_transposed_experts_have_the_same_sizes(tmp_path: Path) -> None:
    base = trace(tmp_path, "gpt_oss")
    sites = base.with_places(base.optional).parameter_sites[:3]
    assert [site.in_features for site in sites] == [64, 64, 96]
    assert [site.out_features for site in sites] == [4, 192, 64]
    assert [site.is_transposed for site in sites] == [False, True, True]


def test_a_router_that_is_widened_first_is_no_place(tmp_path: Path) -> None:
    """What its product gets is another tensor."""
    own = ("experts.gate_up_proj", "experts.down_proj")
    assert trace(tmp_path, "deepseek_v3").optional[2:] == own


def test_experts_that_see_other_rows_are_no_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither they nor their router, twice in a pass."""
    once = Qwen3MoeSparseMoeBlock.forward
    monkeypatch.setattr(
        Qwen3MoeSparseMoeBlock, "forward", lambda self, x: once(self, x) + once(self, x)
    )
    assert trace(tmp_path, "qwen3_moe").optional == ("embed_tokens", "lm_head")


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("t5", {}, "an encoder with a decoder is not supported"),
        ("qwen2_vl", {}, "makes no causal language model"),
        ("no_such_family", {}, "transformers does not take it"),
        ("llama4_text", {}, "layers of type chunked_attention"),
        ("mamba", {}, "layers of type linear_attention"),
        ("rwkv", {}, "keeps a state besides keys and values"),
        ("bert", {}, "neither causal nor of a sliding window|not causal"),
        ("vit", {}, "makes no causal language model"),
        ("gpt2", {}, "has no nn.Linear in its layers"),
        ("mpt", {}, "takes no position_ids"),
        ("roberta", {"is_decoder": True}, "counts positions from its padding token on"),
        ("gptj", {}, "does not take its attention from ALL_ATTENTION_FUNCTIONS"),
        *(
            ("qwen2", {"architectures": [f"Qwen2{head}"]}, f"Qwen2{head} has no head that gives")
            for head in ("ForSequenceClassification", "ForTokenClassification", "ForRewardModel")
        ),
        ("foo", {"auto_map": {"AutoConfig": "a.B"}}, r"code of its own \(auto_map\), .* serve"),
        ("phi3", {"num_hidden_layers": 0}, "Phi3ForCausalLM has no layers"),
        ("phi3", {"sliding_window": -4}, "has a sliding window of no tokens"),
        ("phi3", {"max_position_embeddings": 0}, "max_position_embeddings is 0; set it"),
        ("phi3", {"vocab_size": "many"}, "'vocab_size': .* expected int, got str .* correct it"),
        ("phi3", {"hidden_act": "foo"}, "there is no 'foo'.; correct it"),
        ("llama", {"head_dim": 320}, "heads of more than 256 numbers"),
        ("llama", {"num_key_value_heads": 3}, "has 4 heads for 3 of K and V"),
        ("deepseek_v3", DEEPSEEK | {"v_head_dim": 320}, "heads of more than 256 numbers"),
        ("llama", {"rope_parameters": DYNAMIC | {"factor": "4"}}, "factor of RoPE is '4'; set it"),
        ("llama", {"rope_parameters": MROPE}, r"several dimensions \(M-RoPE\) is not supported"),
        ("llama", {"torch_dtype": "float64"}, "dtype 'float64' is not supported"),
    ],
)
def test_refusals(tmp_path: Path, model_type: str, fields: dict[str, Any], message: str) -> None:
    assert re.search(message, refusal(tmp_path, model_type, **fields))


def test_what_is_a_window() -> None:
    def chunk(_: Any, __: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (key // 8 == query // 8)

    def window(_: Any, __: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (key > query - 8)

    def both(_: Any, __: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return key > query - 8

    assert is_window(window, 8)
    assert is_window(lambda *at: at[3] <= at[2], None)
    assert not is_window(window, None)
    assert not is_window(window, 9)
    assert not is_window(chunk, 8)
    assert not is_window(both, 8)


def test_the_readme_names_the_families_that_are_tested() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    assert families_table() in readme, f"put this into README.md:\n{families_table()}"


def test_the_native_decoder_is_for_what_it_can_compute(tmp_path: Path) -> None:
    def fits(**changes: Any) -> bool:
        fields = SMALL | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | changes
        (tmp_path / "config.json").write_text(json.dumps(fields))
        return NativeConfig.fits(tmp_path)

    assert fits()
    assert fits(rope_scaling={"type": "linear", "factor": 2})
    assert fits(partial_rotary_factor=None)
    assert fits(hidden_act="silu") and fits(hidden_act="swish")
    assert not fits(architectures=["GemmaForCausalLM"])
    assert not fits(rope_scaling={"type": "dynamic", "factor": 2})
    assert not fits(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5})
    assert not fits(rope_parameters={"full_attention": {"rope_type": "default"}})
    assert not fits(hidden_act="gelu")
    assert not fits(num_local_experts=4)
