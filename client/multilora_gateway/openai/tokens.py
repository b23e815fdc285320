"""/tokenize and /detokenize in vLLM's shape: the token ids with which the engine is asked for a
completion, or a chat, of the same body; and back."""

from typing import Any

from multilora_gateway.errors import invalid
from multilora_gateway.generation.chat_messages import template_messages
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.generation.model_name import resolve
from multilora_gateway.http.json_values import Body, Items, Name
from multilora_gateway.openai.chat import ChatBody, chat_prompt
from multilora_gateway.openai.completions import CompletionBody, check_ids, encode, prompts_of
from multilora_gateway.openai.tools import usable


class TextToTokenize(CompletionBody):
    return_token_strs: bool | None = None


class ChatToTokenize(ChatBody):
    return_token_strs: bool | None = None


class TokensToText(Body):
    tokens: Items[int]
    model: Name | None = None


async def tokenized(
    body: TextToTokenize | ChatToTokenize, context: RequestContext
) -> dict[str, Any]:
    """The answer of /tokenize; raises GatewayError."""
    base = await context.backend.base()
    if isinstance(body, ChatToTokenize):
        ids = await chat_token_ids(body, context)
    else:
        # Any adapter would have made the same tokens of a text, but there must be such a one.
        model = await resolve(context, body.model, body.selection)
        await context.backend.templates(model.adapter_id, body.selection.token)
        prompts = prompts_of(body.prompt)
        if len(prompts) != 1:
            raise invalid("prompt: one text at a time is made tokens of", "prompt")
        ids = await encode(body, prompts[0], base)
    texts = [base.tokenizer.token(token_id) or "" for token_id in ids]
    return {
        "count": len(ids),
        "max_model_len": base.max_total_tokens,
        "tokens": list(ids),
        "token_strs": texts if body.return_token_strs else None,
    }


async def chat_token_ids(body: ChatBody, context: RequestContext) -> list[int]:
    """The prompt of a chat; raises GatewayError."""
    base = await context.backend.base()
    model = await resolve(context, body.model, body.selection)
    own = await context.backend.templates(model.adapter_id, body.selection.token)
    tools = usable(body.tools, body.tool_choice)
    return await chat_prompt(body, context, base, own, template_messages(body.messages), tools)


async def detokenized(body: TokensToText, context: RequestContext) -> dict[str, str]:
    """The answer of /detokenize, special tokens included; raises GatewayError."""
    base = await context.backend.base()
    await resolve(context, body.model)
    ids = check_ids(body.tokens, base, "tokens")
    return {"prompt": base.tokenizer.decode(ids, skip_special_tokens=False)}
