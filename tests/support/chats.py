"""Chats as the servers render and tokenise them, with processes that all tests share."""

import atexit
from collections.abc import Mapping, Sequence
from typing import Any

from multilora_text.chat_template import ChatTemplate
from multilora_text.renderer import TemplateRenderer
from multilora_text.tokenizer import Tokenizer

RENDERER = TemplateRenderer()
atexit.register(RENDERER.close)

Messages = Sequence[Mapping[str, Any]]


def chat(
    tokenizer: Tokenizer, messages: Messages, own: ChatTemplate | None = None, **variables: Any
) -> str:
    """The text; raises TextError."""
    return RENDERER.render(tokenizer.template(own), messages, **variables).result()


def encode_chat(
    tokenizer: Tokenizer, messages: Messages, own: ChatTemplate | None = None, **variables: Any
) -> list[int]:
    """The ids; raises TextError."""
    return tokenizer.encode_rendered(chat(tokenizer, messages, own, **variables))
