"""POST /invocations, SageMaker's route: whatever POST /, the chats or the completions take."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from multilora_gateway.generation.context import Context
from multilora_gateway.routes.openai import chat_answer, completions
from multilora_gateway.routes.tgi import compatible
from multilora_gateway.tgi.bodies import BODY, ERRORS, generate_request, json_body

router = APIRouter(tags=["TGI"], responses=ERRORS)


@router.post("/invocations", openapi_extra=BODY, response_model=None)
async def invocations(request: Request, context: Context) -> Response:
    """As POST /; with `messages` as /v1/chat/completions, but that a last message of the assistant
    is continued, as on all routes of TGI; with `prompt` as /v1/completions."""
    body = json_body(await request.body())
    if isinstance(body, dict) and "inputs" not in body:
        if "messages" in body:
            return await chat_answer(request, context, as_tgi=True)
        if "prompt" in body:
            return await completions(request, context)
    return await compatible(request, generate_request(body), context)
