"""Chats as the servers render and tokenise them, with processes that all tests share."""

import atexit
from collections.abc import Mapping, Sequence
from typing import Any

from multilora_text.chat_template import NO_TEMPLATES, ChatTemplate, ChatTemplates
from multilora_text.renderer import TemplateRenderer
from multilora_text.tokenizer import Tokenizer

RENDERER = TemplateRenderer()
atexit.register(RENDERER.close)

Messages = Sequence[Mapping[str, Any]]


def only(source: str, **special_tokens: str) -> ChatTemplates:
    """One template for all chats."""
    return ChatTemplates(ChatTemplate(source, special_tokens))


def chat(
    tokenizer: Tokenizer, messages: Messages, own: ChatTemplates = NO_TEMPLATES, **variables: Any
) -> str:
    """The text; raises TextError."""
    template = tokenizer.template(own, bool(variables.get("tools")))
    return RENDERER.render(template, messages, **variables).result()


def encode_chat(
    tokenizer: Tokenizer, messages: Messages, own: ChatTemplates = NO_TEMPLATES, **variables: Any
) -> list[int]:
    """The ids; raises TextError."""
    return tokenizer.encode_rendered(chat(tokenizer, messages, own, **variables))
