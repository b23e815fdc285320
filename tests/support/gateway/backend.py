"""For tests of the gateway's Backend: one that is connected, and a base for its server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from multilora_gateway.backend.client import Backend
from support.fake.adapters import FakeAdapters
from support.tiny import tokenizers as tiny_tokenizers

SECONDS = 20


def description(model_id: str) -> dict[str, Any]:
    numbers = (
        "max_input_tokens", "max_total_tokens", "max_batch_prefill_tokens",
        "max_concurrent_requests", "max_lora_rank", "vocab_size",
    )  # fmt: skip
    return {
        "model_id": model_id, "model_sha": None, "dtype": "float32", "device": "cpu",
        **dict.fromkeys(numbers, 64), "sampling_defaults": {},
        "tokenizer": {"tokenizer.json": tiny_tokenizers.byte_level().to_str()},
    }  # fmt: skip


@asynccontextmanager
async def connected(server: FakeAdapters, admin_key: str = "") -> AsyncIterator[Backend]:
    backend = Backend(server.url, admin_key)
    try:
        yield backend
    finally:
        await backend.close()


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, SECONDS))
