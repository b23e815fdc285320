"""/tokenize in the shapes of TGI and of vLLM, vLLM's /detokenize, TGI's /chat_tokenize."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from multilora_gateway.errors import invalid
from multilora_gateway.generation.context import Context
from multilora_gateway.generation.model_name import resolve
from multilora_gateway.openai.bodies import parse, request_schema
from multilora_gateway.openai.tokens import (
    ChatToTokenize,
    TextToTokenize,
    TokensToText,
    detokenized,
    tokenized,
)
from multilora_gateway.tgi.bodies import BODY, ERRORS, TgiRoute, generate_request, json_body
from multilora_gateway.tgi.parameters import ChatTokenizeRequest
from multilora_gateway.tgi.tokens import chat_tokens, text_tokens

router = APIRouter(route_class=TgiRoute, tags=["Tokens"], responses=ERRORS)
_DETOKENIZE = "/detokenize"


@router.post("/tokenize", openapi_extra=BODY, response_model=None)
async def tokenize(request: Request, context: Context) -> Response:
    """The prompt as tokens: of `inputs` as in TGI, of `prompt` or `messages` as in vLLM."""
    raw = await request.body()
    body = json_body(raw)
    if isinstance(body, dict) and "inputs" not in body and ("prompt" in body or "messages" in body):
        kind = ChatToTokenize if "messages" in body else TextToTokenize
        return JSONResponse(await tokenized(parse(kind, raw), context))
    asked = generate_request(body)
    if not asked.inputs:
        raise invalid("`inputs` cannot be empty")
    base = await context.backend.base()
    return JSONResponse(await asyncio.to_thread(text_tokens, base, asked.inputs))


@router.post(
    _DETOKENIZE, openapi_extra=request_schema(TokensToText, _DETOKENIZE), response_model=None
)
async def detokenize(request: Request, context: Context) -> Response:
    """The text of tokens."""
    body = parse(TokensToText, await request.body())
    return JSONResponse(await detokenized(body, context))


@router.post("/chat_tokenize")
async def chat_tokenize(body: ChatTokenizeRequest, context: Context) -> dict[str, Any]:
    """The prompt that a chat becomes, as text and tokens."""
    model = await resolve(context, body.model)
    return await chat_tokens(body, model.adapter_id, context)
