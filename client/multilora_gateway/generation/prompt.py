"""Prompts as token ids, made beside the event loop where that may take long."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from multilora_text.chat_template import ChatTemplate
from multilora_text.tokenizer import Tokenizer

_LONG = 8192  # characters; for a shorter text a thread would cost more than the tokenising


async def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """The token ids of a text, with the tokens that the tokenizer puts around a prompt."""
    if len(text) > _LONG:
        return await asyncio.to_thread(tokenizer.encode, text)
    return tokenizer.encode(text)


async def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    template: ChatTemplate | None,
    **variables: Any,
) -> list[int]:
    """The token ids of a chat; `template` None is the base model's. Raises TextError.

    A template is a program of whoever made the adapter, and may run long, so it has a thread.
    """
    return await asyncio.to_thread(tokenizer.encode_chat, messages, template, **variables)
