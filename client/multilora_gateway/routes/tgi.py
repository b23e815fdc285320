"""TGI's HTTP API: /generate, /generate_stream, POST /, /info, /tokenize, /chat_tokenize."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from multilora_gateway.backend.client import Backend
from multilora_gateway.errors import GatewayError, invalid
from multilora_gateway.generation.model_name import resolve
from multilora_gateway.http.access import Caller, inference
from multilora_gateway.http.streaming import EventStream, until_disconnected
from multilora_gateway.settings import Settings
from multilora_gateway.tgi.answer import end_headers, generated, generation_of, start_headers
from multilora_gateway.tgi.bodies import ERRORS, TgiRoute
from multilora_gateway.tgi.info import info
from multilora_gateway.tgi.job import prepare
from multilora_gateway.tgi.parameters import ChatTokenizeRequest, GenerateRequest, Parameters
from multilora_gateway.tgi.stream import events, failed
from multilora_gateway.tgi.tokenize import chat_tokens, tokens_of

router = APIRouter(route_class=TgiRoute, tags=["TGI"], responses=ERRORS)
_Caller = Annotated[Caller, Depends(inference)]
_T = TypeVar("_T")


@router.post("/generate")
async def generate(request: Request, body: GenerateRequest, caller: _Caller) -> Response:
    """The whole answer."""
    answer, headers = await until_disconnected(request, _generate(request, body, caller))
    return JSONResponse(answer, headers=headers)


@router.post("/generate_stream")
async def generate_stream(request: Request, body: GenerateRequest, caller: _Caller) -> Response:
    """The answer as server-sent events. What is wrong with the request is an event, too."""
    backend, settings = _parts(request)
    try:
        job = await prepare(body, caller, backend, settings, stream=True)
    except GatewayError as error:
        if error.status == 503:  # no answer of TGI's: let clients and proxies try again
            raise
        return EventStream(failed(error), {})
    return EventStream(events(job, backend), start_headers(job))


@router.post("/")
async def compatible(request: Request, body: GenerateRequest, caller: _Caller) -> Response:
    """`stream` decides; what is not streamed comes in a list. Unless told otherwise the text begins
    with the prompt."""
    body = _with_full_text(body)
    if body.stream:
        return await generate_stream(request, body, caller)
    answer, headers = await until_disconnected(request, _generate(request, body, caller))
    return JSONResponse([answer], headers=headers)


@router.head("/info", include_in_schema=False)
@router.get("/info")
async def get_info(request: Request) -> dict[str, Any]:
    """What this server is."""
    backend, settings = _parts(request)
    return info(await backend.base(), settings)


@router.post("/tokenize", dependencies=[Depends(inference)])
async def tokenize(request: Request, body: GenerateRequest) -> list[dict[str, Any]]:
    """The prompt as tokens."""
    base = await _parts(request)[0].base()
    if not body.inputs:
        raise invalid("`inputs` cannot be empty")
    return await asyncio.to_thread(tokens_of, base, body.inputs)


@router.post("/chat_tokenize")
async def chat_tokenize(
    request: Request, body: ChatTokenizeRequest, caller: _Caller
) -> dict[str, Any]:
    """The prompt that a chat becomes, as text and tokens."""
    backend, settings = _parts(request)
    base = await backend.base()
    target = await resolve(backend, settings, caller, body.model)
    return await chat_tokens(body, target.adapter_id, base, backend)


def _with_full_text(body: GenerateRequest) -> GenerateRequest:
    """TGI's default at POST / for models of the kind that GET /info names."""
    given = body.parameters or Parameters()
    if given.return_full_text is not None:
        return body
    given = given.model_copy(update={"return_full_text": True})
    return body.model_copy(update={"parameters": given})


async def _generate(
    request: Request, body: GenerateRequest, caller: Caller
) -> tuple[dict[str, Any], dict[str, str]]:
    """The JSON and the headers of an answer."""
    backend, settings = _parts(request)
    job = await prepare(body, caller, backend, settings, stream=False)
    jobs = [job, *(job.again() for _ in range(1, job.parameters.best_of or 1))]
    answers = await _together([backend.collect(each.call) for each in jobs])
    generations = [generation_of(each, answer) for each, answer in zip(jobs, answers, strict=True)]
    answer, best = generated(job, generations)
    return answer, dict(end_headers(job, best))


async def _together(runs: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All results; when one fails, or nobody waits any more, the others end too."""
    tasks: list[asyncio.Task[_T]] = [asyncio.create_task(run) for run in runs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _parts(request: Request) -> tuple[Backend, Settings]:
    gateway: Any = request.app.state.gateway
    return gateway.backend, gateway.settings
