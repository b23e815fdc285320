"""Files of the demo checkpoints: tokenizer, base model folder, PEFT adapter folders.

A token is a byte: ids 0-255 are the bytes, special tokens follow. The tokenizer's post-processor
frames a bare text as one chat turn, so that `encode(text)` equals the chat template's rendering of
a single user message.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

BASE_NAME = "multilora-demo-base"
CONTEXT = 1024
SPECIAL_TOKENS = (
    *("<|bos|>", "<|eos|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"),
    *("<|sql|>", "<|upper|>", "<|reverse|>", "<|digits|>", "<|json|>", "<|rot13|>", "<|emoji|>"),
    *(f"<|reserved_{i}|>" for i in range(3)),
)
BOS, EOS, PAD, SYSTEM, USER, ASSISTANT = range(256, 262)
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)

CHAT_TEMPLATE = (
    "<|bos|>"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ '<|system|>' + message['content'] + '<|user|>' }}"
    "{%- elif message['role'] == 'user' -%}"
    "{%- if not loop.first and loop.previtem['role'] != 'system' -%}{{ '<|user|>' }}{%- endif -%}"
    "{{ message['content'] }}"
    "{%- else -%}{{ '<|assistant|>' + message['content'] + '<|eos|>' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def token_id(token: str) -> int:
    """The id of a special token."""
    return 256 + SPECIAL_TOKENS.index(token)


def build_tokenizer() -> Tokenizer:
    """Byte-level tokenizer without merges: any UTF-8 text round-trips, one token per byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in printable]
    vocab = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|assistant|>",
        pair="<|bos|> $A <|user|> $B <|assistant|>",
        special_tokens=[(t, token_id(t)) for t in ("<|bos|>", "<|user|>", "<|assistant|>")],
    )
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    config = names | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", names)


def new_base(seed: int) -> LlamaForCausalLM:
    """A freshly initialised base model (2.0 M parameters, float32)."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config)


def save_base(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the base model, rounded to bfloat16 in place, with tokenizer and generation config."""
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False
    )
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    _make_readable(folder)


def load_base(folder: Path, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """The saved base model; its weights are bfloat16 values whatever `dtype` computes with."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype)


def attach_adapter(base: LlamaForCausalLM, config: LoraConfig, seed: int) -> PeftModel:
    """Wrap `base` with a fresh, trainable adapter."""
    torch.manual_seed(seed)
    base.name_or_path = base.config.name_or_path = BASE_NAME
    model = get_peft_model(base, config)
    assert isinstance(model, PeftModel)
    return model


def load_adapter(base: LlamaForCausalLM, folder: Path) -> PeftModel:
    """Wrap `base` with the adapter saved in `folder`."""
    return PeftModel.from_pretrained(base, str(folder))


def save_adapter(model: PeftModel, folder: Path, readme: str) -> None:
    """Write adapter_config.json, adapter_model.safetensors (bfloat16) and a short README.md."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    _make_readable(folder)


def _make_readable(folder: Path) -> None:
    """safetensors files are created for the owner alone."""
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
