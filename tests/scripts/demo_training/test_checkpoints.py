"""The committed demo checkpoints: small, varied, genuine, and each adapter has its skill."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from demo_training.checkpoint import ASSISTANT, BOS, build_tokenizer, load_adapter, load_base
from demo_training.evaluation import greedy
from demo_training.numbers import number_words
from demo_training.skills import SKILLS, emojify, is_held_out
from demo_training.words import wild_text

DEMO = Path(__file__).resolve().parents[3] / "model_repository/multilora_llm/1/demo"
ENTRIES = json.loads((DEMO / "skills.json").read_text(encoding="utf-8"))
CONFIGS = {
    name: json.loads((DEMO / "adapters" / name / "adapter_config.json").read_text())
    for name in SKILLS
}


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    return load_base(DEMO / "base")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "base" / "tokenizer.json"))


def test_checkpoints_are_small(base: LlamaForCausalLM):
    assert sum(p.numel() for p in base.parameters()) <= 3_000_000
    assert sum(f.stat().st_size for f in DEMO.rglob("*") if f.is_file()) <= 8_000_000


def test_adapters_are_mixed():
    assert sorted(p.name for p in (DEMO / "adapters").iterdir()) == sorted(SKILLS)
    targets = {name: set(c["target_modules"]) for name, c in CONFIGS.items()}
    assert {4, 8, 16, 32, 64} <= {c["r"] for c in CONFIGS.values()}
    assert {"q_proj", "v_proj"} in targets.values()
    assert any(len(t) == 7 for t in targets.values())
    assert any(c["use_rslora"] for c in CONFIGS.values())
    assert any(c["rank_pattern"] and c["alpha_pattern"] for c in CONFIGS.values())


@pytest.mark.parametrize("name", SKILLS)
def test_adapter_folder_is_portable_peft(name: str):
    folder = DEMO / "adapters" / name
    assert CONFIGS[name]["base_model_name_or_path"] == "multilora-demo-base"
    tensors = load_file(folder / "adapter_model.safetensors")
    assert all(t.isfinite().all() and t.any() for t in tensors.values())
    assert max(t.shape[0] for k, t in tensors.items() if "lora_A" in k) == CONFIGS[name]["r"]


def test_rank_pattern_is_in_the_tensors():
    tensors = load_file(DEMO / "adapters/digits/adapter_model.safetensors")
    ranks = {k.split("layers.")[1]: t.shape[0] for k, t in tensors.items() if "lora_A" in k}
    assert ranks["0.self_attn.q_proj.lora_A.weight"] == 8
    assert ranks["1.self_attn.q_proj.lora_A.weight"] == 32
    assert ranks["1.self_attn.v_proj.lora_A.weight"] == 16


def test_text_survives_the_tokenizer(tokenizer: Tokenizer):
    rng = Random(0)
    for text in ("", " a  b\n\t", "Grüße aus 東京 🍕", *(wild_text(rng) for _ in range(50))):
        ids = tokenizer.encode(text).ids
        assert ids == [BOS, *text.encode(), ASSISTANT]
        assert tokenizer.decode(ids) == text


def test_tokenizer_file_is_what_the_script_builds(tokenizer: Tokenizer):
    assert tokenizer.to_str() == build_tokenizer().to_str()


def test_chat_template_renders_a_user_message_as_the_bare_prompt():
    hf = AutoTokenizer.from_pretrained(DEMO / "base")

    def render(*messages: tuple[str, str]) -> str:
        turns = [{"role": role, "content": content} for role, content in messages]
        return hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    one = render(("user", "Hé?"))
    assert hf.encode(one, add_special_tokens=False) == hf.encode("Hé?")
    assert render(("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v")) == (
        "<|bos|><|system|>s<|user|>u<|assistant|>a<|eos|><|user|>v<|assistant|>"
    )


def test_skills_file_names_the_base_and_every_adapter():
    assert [e["adapter_id"] for e in ENTRIES] == ["", *SKILLS]
    assert all(len(e["examples"]) == 3 and e["description"] for e in ENTRIES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e["adapter_id"] or "base")
def test_shown_examples_hold(entry: dict, dtype: torch.dtype):
    model = load_base(DEMO / "base", dtype)
    if entry["adapter_id"]:
        model = load_adapter(model, DEMO / "adapters" / entry["adapter_id"])
    prompts = [e["prompt"] for e in entry["examples"]]
    assert greedy(model, prompts) == [e["answer"] for e in entry["examples"]]


def test_an_adapter_answers_in_the_second_turn_and_under_a_system_prompt():
    model = load_adapter(load_base(DEMO / "base"), DEMO / "adapters/upper")
    second = "good morning<|assistant|>GOOD MORNING<|eos|><|user|>how are you"
    system = "<|system|>You are a helpful assistant.<|user|>how are you"
    tokenizer = build_tokenizer()
    for prompt in (second, system):
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40)
        assert tokenizer.decode(out[0, ids.shape[1] :].tolist()) == "HOW ARE YOU"


@pytest.mark.parametrize(
    ("n", "words"),
    [(0, "zero"), (42007, "forty two thousand and seven"), (100, "one hundred"),
     (999_999, "nine hundred and ninety nine thousand nine hundred and ninety nine")],
)  # fmt: skip
def test_number_words(n: int, words: str):
    assert number_words(n, joiner=" and ") == words


def test_emojify_keeps_other_words_and_punctuation():
    assert emojify("Cats, a dog!") == "Cats 🐱, a dog 🐶!"
    assert emojify("category rainbow") == "category rainbow"


def test_training_never_sees_held_out_prompts():
    rng = Random(5)
    for skill in SKILLS.values():
        keys = [p if skill.held_out_by == "prompt" else a
                for p, a in (skill.draw(rng, held_out=False) for _ in range(100))]  # fmt: skip
        assert not any(map(is_held_out, keys))
