"""TGI's HTTP API: /generate, /generate_stream, POST /, /info. (Tokens have a file of their own.)"""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from multilora_gateway.errors import GatewayError
from multilora_gateway.generation.context import Context, RequestContext
from multilora_gateway.generation.model_name import served_name
from multilora_gateway.http.streaming import EventStream, until_disconnected
from multilora_gateway.tgi.answer import events, refused, start_headers, whole_answer
from multilora_gateway.tgi.bodies import ERRORS, TgiRoute
from multilora_gateway.tgi.job import prepare
from multilora_gateway.tgi.parameters import GenerateRequest, Parameters

router = APIRouter(route_class=TgiRoute, tags=["TGI"], responses=ERRORS)
_VERSION = "3.3.6"  # of TGI, which clients of this API look at


@router.post("/generate")
async def generate(request: Request, body: GenerateRequest, context: Context) -> Response:
    """The whole answer."""
    answer, headers = await until_disconnected(request, _generate(body, context))
    return JSONResponse(answer, headers=headers)


@router.post("/generate_stream")
async def generate_stream(request: Request, body: GenerateRequest, context: Context) -> Response:
    """The answer as server-sent events. What is wrong with the request is an event, too."""
    try:
        job = await prepare(body, context, stream=True)
    except GatewayError as error:
        if error.status == 503:  # no answer of TGI's: let clients and proxies try again
            raise
        return EventStream(refused(error), {})
    return EventStream(events(job), start_headers(job))


@router.post("/")
async def compatible(request: Request, body: GenerateRequest, context: Context) -> Response:
    """`stream` decides; what is not streamed comes in a list. Unless told otherwise the text begins
    with the prompt."""
    body = _with_full_text(body)
    if body.stream:
        return await generate_stream(request, body, context)
    answer, headers = await until_disconnected(request, _generate(body, context))
    return JSONResponse([answer], headers=headers)


@router.head("/info", include_in_schema=False)
@router.get("/info")
async def get_info(request: Request) -> dict[str, Any]:
    """What this server is."""
    gateway: Any = request.app.state.gateway
    settings, base = gateway.settings, await gateway.backend.base()
    return {
        "model_id": served_name(settings, base),
        "model_sha": base.model_sha,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": base.max_concurrent_requests,
        "max_best_of": settings.max_best_of,
        "max_stop_sequences": settings.max_stop_sequences,
        "max_input_tokens": base.max_input_tokens,
        "max_total_tokens": base.max_total_tokens,
        "validation_workers": 1,
        "max_client_batch_size": base.max_concurrent_requests,
        "router": "multilora-gateway",
        "version": _VERSION,
        "sha": None,
        "docker_label": None,
    }


def _with_full_text(body: GenerateRequest) -> GenerateRequest:
    """TGI's default at POST / for models of the kind that GET /info names."""
    given = body.parameters or Parameters()
    if given.return_full_text is not None:
        return body
    given = given.model_copy(update={"return_full_text": True})
    return body.model_copy(update={"parameters": given})


async def _generate(
    body: GenerateRequest, context: RequestContext
) -> tuple[dict[str, Any], dict[str, str]]:
    answer, headers = await whole_answer(await prepare(body, context, stream=False))
    return answer, dict(headers)
