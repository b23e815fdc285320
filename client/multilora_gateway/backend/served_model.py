"""The base model as the gateway knows it: what the server says once, tokenizer included."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from multilora_gateway.errors import unavailable
from multilora_text.errors import TextError
from multilora_text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ServedModel:
    """Lengths are in tokens. `model_sha` is the Hub's commit, None for a folder.
    `sampling_defaults` are for requests to the OpenAI API, by the engine's names."""

    model_id: str
    model_sha: str | None
    dtype: str
    device: str
    max_input_tokens: int
    max_total_tokens: int
    max_batch_prefill_tokens: int
    max_concurrent_requests: int
    max_lora_rank: int
    vocab_size: int
    sampling_defaults: Mapping[str, float]
    tokenizer: Tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """OpenAI's system_fingerprint: another one, other weights or another arithmetic."""
        facts = f"{self.model_id} {self.model_sha} {self.dtype} {self.device}"
        return f"fp_{hashlib.sha256(facts.encode()).hexdigest()[:10]}"

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "ServedModel":
        """From the answer to the action `describe`; GatewayError when a field is missing or wrong.
        Reading a big vocabulary takes a good part of a second."""
        try:
            files = values["tokenizer"]
            facts = {name: values[name] for name in _FACTS}
            return ServedModel(
                **facts,
                tokenizer=Tokenizer.from_files(files, str(values["model_id"])),
            )
        except (KeyError, TypeError, TextError) as error:
            raise unavailable(
                f"the Triton server describes its model in a way this gateway cannot read "
                f"({type(error).__name__}: {error}); run both in the same version"
            ) from None


_FACTS = (
    "model_id", "model_sha", "dtype", "device", "max_input_tokens", "max_total_tokens",
    "max_batch_prefill_tokens", "max_concurrent_requests", "max_lora_rank", "vocab_size",
    "sampling_defaults",
)  # fmt: skip
