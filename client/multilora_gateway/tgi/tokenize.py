"""POST /tokenize and /chat_tokenize: text as tokens and where they stand in it."""

import asyncio
from typing import Any

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.served_model import BaseModel
from multilora_gateway.errors import GatewayError
from multilora_gateway.generation.chat_messages import template_messages
from multilora_gateway.tgi.parameters import ChatTokenizeRequest
from multilora_text.errors import TextError


def tokens_of(base: BaseModel, text: str, special: bool = True) -> list[dict[str, Any]]:
    """TGI's list. `start` and `stop` count characters; tokens put around the text have none.

    `special`: with the tokens that the tokenizer puts around a prompt.
    """
    return [
        {"id": token_id, "text": text[start:stop], "start": start, "stop": stop}
        for token_id, start, stop in base.tokenizer.spans(text, special)
    ]


async def chat_tokens(
    request: ChatTokenizeRequest, adapter_id: str, base: BaseModel, backend: Backend
) -> dict[str, Any]:
    """TGI's object; raises GatewayError when the template refuses the messages."""
    template = await backend.template(adapter_id)
    messages = template_messages(request.messages)
    variables = {"tools": request.tools} if request.tools else {}

    def answer() -> dict[str, Any]:
        text = base.tokenizer.chat(messages, template, **variables)
        return {"tokenize_response": tokens_of(base, text, special=False), "templated_text": text}

    try:
        return await asyncio.to_thread(answer)
    except TextError as error:
        raise GatewayError(422, "template_error", f"Template error: {error}") from None
