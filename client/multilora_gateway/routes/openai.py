"""The routes of the OpenAI API."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from multilora_gateway.http.access import Caller, inference
from multilora_gateway.openai.answer import respond
from multilora_gateway.openai.bodies import parse, request_schema
from multilora_gateway.openai.chat import ChatBody, chat_job
from multilora_gateway.openai.completions import CompletionBody, completion_job
from multilora_gateway.openai.job import Place
from multilora_gateway.openai.models import model, models

router = APIRouter(tags=["OpenAI"])
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"


async def _place(request: Request, caller: Annotated[Caller, Depends(inference)]) -> Place:
    gateway = request.app.state.gateway
    return Place(gateway.backend, gateway.settings, caller)


_Here = Annotated[Place, Depends(_place)]


@router.post(_CHAT, openapi_extra=request_schema(ChatBody, _CHAT), response_model=None)
async def chat_completions(
    request: Request,
    place: _Here,
) -> Response:
    """The assistant's next turn in a conversation."""
    body = parse(ChatBody, await request.body())
    return await respond(request, place.backend, await chat_job(body, place), bool(body.stream))


@router.post(
    _COMPLETIONS, openapi_extra=request_schema(CompletionBody, _COMPLETIONS), response_model=None
)
async def completions(
    request: Request,
    place: _Here,
) -> Response:
    """What follows a prompt, or several."""
    body = parse(CompletionBody, await request.body())
    job = await completion_job(body, place)
    return await respond(request, place.backend, job, bool(body.stream))


@router.get("/v1/models")
async def list_models(place: _Here) -> dict[str, Any]:
    """The base model and the adapters."""
    return await models(place.backend, place.settings, place.caller)


@router.get("/v1/models/{name:path}")
async def get_model(name: str, place: _Here) -> dict[str, Any]:
    """One of them."""
    return await model(place.backend, place.settings, place.caller, name)
