"""The OpenAI API: chats, completions, and the models as OpenAI and vLLM list them."""

import json
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse, StreamingResponse

from multilora_api.admin import Origin
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import not_found
from multilora_gateway.generation.chat_messages import goes_on
from multilora_gateway.generation.context import Context, RequestContext
from multilora_gateway.generation.model_name import base_names, resolve, served_name
from multilora_gateway.openai.bodies import parse, request_schema
from multilora_gateway.openai.chat import ChatBody, chat_job
from multilora_gateway.openai.completions import CompletionBody, completion_job
from multilora_gateway.openai.job import respond
from multilora_gateway.settings import Settings

router = APIRouter(tags=["OpenAI"])
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_OWNER = "multilora"
_CREATED = int(time.time())  # stands for every model, as no other time is known


@router.post(_CHAT, openapi_extra=request_schema(ChatBody, _CHAT), response_model=None)
async def chat_completions(
    request: Request,
    context: Context,
) -> Response:
    """The assistant's next turn in a conversation."""
    return await chat_answer(request, context)


async def chat_answer(request: Request, context: RequestContext, as_tgi: bool = False) -> Response:
    """`as_tgi`: a last message of the assistant is continued."""
    body = parse(ChatBody, await request.body())
    if as_tgi and body.continue_final_message is None and goes_on(body.messages):
        body.continue_final_message, body.add_generation_prompt = True, None
    return await respond(request, await chat_job(body, context), bool(body.stream))


@router.post(
    _COMPLETIONS, openapi_extra=request_schema(CompletionBody, _COMPLETIONS), response_model=None
)
async def completions(
    request: Request,
    context: Context,
) -> Response:
    """What follows a prompt, or several."""
    body = parse(CompletionBody, await request.body())
    return await respond(request, await completion_job(body, context), bool(body.stream))


@router.get("/v1/models/", response_class=JSONResponse, include_in_schema=False)
@router.get("/v1/models", response_class=JSONResponse)
async def list_models(context: Context) -> Response:
    """The base model, and the adapters that can answer."""
    base = await context.backend.base()
    parts = _list_in_parts(context, base)
    first = await anext(parts)  # what is wrong shows before the answer begins
    return StreamingResponse(_joined(first, parts), media_type="application/json")


@router.get("/v1/models/{name:path}")
async def get_model(name: str, context: Context) -> dict[str, Any]:
    """One of the models."""
    base = await context.backend.base()
    model = await resolve(context, name)
    if not model.adapter_id:
        return _base(base, context.settings)
    entry = await context.backend.adapters("info", adapter_id=model.adapter_id)
    if _is_refused(entry):
        raise not_found(entry["error"])
    return _adapter(entry, base, context.settings)


async def _list_in_parts(context: RequestContext, base: ServedModel) -> AsyncGenerator[str, None]:
    """The list as JSON, in parts: there may be so many adapters that to make one text of all would
    hold up everybody."""
    told: set[str] = set()
    after = ""
    text = '{"object": "list", "data": [' + json.dumps(_base(base, context.settings))
    while True:
        answer = await context.backend.adapters("list", after=after)
        entries = [entry for entry in answer["adapters"] if entry["id"] not in told]
        told = told or {entry["id"] for entry in entries}  # the first part has what is in memory
        for entry in entries:
            if context.caller.may_use(entry["id"]) and _may_answer(entry):
                text += ", " + json.dumps(_adapter(entry, base, context.settings))
        after = answer.get("next", "")
        if not after:
            break
        yield text
        text = ""
    yield text + "]}"


async def _joined(first: str, rest: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    yield first
    async for part in rest:
        yield part


def _is_refused(entry: Mapping[str, Any]) -> bool:
    """Whether the adapter's files, as they are, cannot be served."""
    return entry["state"] == "failed" and entry.get("error_code") != "UNAVAILABLE"


def _may_answer(entry: Mapping[str, Any]) -> bool:
    """False also for a name of a request that may turn out to be misspelt."""
    is_unread = entry["origin"] == Origin.ON_DEMAND.value and entry["digest"] is None
    return not (is_unread or _is_refused(entry))


def _base(base: ServedModel, settings: Settings) -> dict[str, Any]:
    return _model(served_name(settings, base), base.model_id, None, base)


def _adapter(entry: Mapping[str, Any], base: ServedModel, settings: Settings) -> dict[str, Any]:
    """An adapter that shares a name with the base is listed by the name that clients must send."""
    name = entry["id"]
    shown = f"{name}:{name}" if name in base_names(settings, base) else name
    return _model(shown, entry.get("source") or name, served_name(settings, base), base)


def _model(name: str, root: str, parent: str | None, base: ServedModel) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": _CREATED,
        "owned_by": _OWNER,
        "root": root,
        "parent": parent,
        "max_model_len": base.max_total_tokens,
    }
