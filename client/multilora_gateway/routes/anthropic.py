"""Anthropic's Messages API."""

from fastapi import APIRouter, Request, Response

from multilora_gateway.anthropic.body import MessagesBody, MessagesToCount
from multilora_gateway.anthropic.turn import MessageTurn
from multilora_gateway.generation.context import Context
from multilora_gateway.openai.bodies import parse, request_schema
from multilora_gateway.openai.chat import chat_job
from multilora_gateway.openai.tokens import chat_token_ids
from multilora_gateway.openai.turn import respond_in_turn

router = APIRouter(tags=["Anthropic"])
_MESSAGES, _COUNT = "/v1/messages", "/v1/messages/count_tokens"


@router.post(_MESSAGES, openapi_extra=request_schema(MessagesBody, _MESSAGES), response_model=None)
async def messages(request: Request, context: Context) -> Response:
    """The assistant's next message."""
    body = parse(MessagesBody, await request.body())
    turn = MessageTurn(await chat_job(body.as_chat(), context))
    return await respond_in_turn(request, turn, bool(body.stream))


@router.post(_COUNT, openapi_extra=request_schema(MessagesToCount, _COUNT))
async def count_tokens(request: Request, context: Context) -> dict[str, int]:
    """How many tokens the prompt of such a message has."""
    body = parse(MessagesToCount, await request.body())
    return {"input_tokens": len(await chat_token_ids(body.as_chat(), context))}
