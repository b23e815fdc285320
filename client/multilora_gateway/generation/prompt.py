"""Prompts as token ids, made beside the event loop where that may take long."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from multilora_gateway.errors import unavailable
from multilora_text.chat_template import ChatTemplates
from multilora_text.continuation import marked, unmarked
from multilora_text.errors import RenderingBusy
from multilora_text.renderer import TemplateRenderer
from multilora_text.tokenizer import Tokenizer

_LONG = 8192  # characters; for a shorter text a thread would cost more than the tokenising


async def encode_text(tokenizer: Tokenizer, text: str, special: bool = True) -> list[int]:
    """The token ids of a text; `special`: with the tokens that the tokenizer puts around one."""
    return await _encoded(tokenizer.encode if special else tokenizer.encode_rendered, text)


async def render_chat(
    renderer: TemplateRenderer,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    own: ChatTemplates,
    continued: bool = False,
    **variables: Any,
) -> str:
    """The text of a chat; `own` are an adapter's templates. `continued`: it ends in the middle of
    the last message. Raises TextError, and GatewayError when it may succeed later."""
    template = tokenizer.template(own, tools=bool(variables.get("tools")))
    if continued:
        variables["add_generation_prompt"] = False
    shown = marked(messages) if continued else messages
    try:
        text = await asyncio.wrap_future(renderer.render(template, shown, **variables))
    except RenderingBusy as error:
        raise unavailable(str(error)) from None
    return unmarked(text, messages) if continued else text


async def encode_chat(
    renderer: TemplateRenderer,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    own: ChatTemplates,
    continued: bool = False,
    **variables: Any,
) -> list[int]:
    """The token ids of a chat; raises like `render_chat`."""
    text = await render_chat(renderer, tokenizer, messages, own, continued, **variables)
    return await _encoded(tokenizer.encode_rendered, text)


async def _encoded(encode: Callable[[str], list[int]], text: str) -> list[int]:
    return await asyncio.to_thread(encode, text) if len(text) > _LONG else encode(text)
