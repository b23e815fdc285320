"""What a gateway has to know of the base model: the answer to the action `describe`."""

from typing import Any

from multilora.engine import Engine
from multilora_text.tokenizer import read_tokenizer_files

DEMO_NAME = "multilora-demo"


def describe(engine: Engine) -> dict[str, Any]:
    """Lengths are in tokens. `tokenizer` holds the texts of the tokenizer's files by name;
    `model_sha` is the commit of a model from the Hub, else None."""
    config, base, folder = engine.config, engine.base, engine.model_folder
    return {
        "model_id": config.model_id or DEMO_NAME,
        "model_sha": folder.name if folder.parent.name == "snapshots" else None,
        "dtype": engine.dtype,
        "device": engine.device,
        "max_input_tokens": engine.max_input_tokens,
        "max_total_tokens": engine.max_total_tokens,
        "max_batch_prefill_tokens": config.max_batch_prefill_tokens,
        "max_concurrent_requests": config.max_concurrent_requests,
        "max_lora_rank": config.max_lora_rank,
        "vocab_size": base.vocab_size,
        "eos_token_ids": list(base.eos_token_ids),
        "tokenizer": read_tokenizer_files(folder),
    }
