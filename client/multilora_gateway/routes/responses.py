"""POST /v1/responses: the OpenAI Responses API, of which nothing is stored."""

from fastapi import APIRouter, Request, Response

from multilora_gateway.generation.context import Context
from multilora_gateway.openai.bodies import parse, request_schema
from multilora_gateway.openai.chat import chat_job
from multilora_gateway.openai.turn import respond_in_turn
from multilora_gateway.responses.body import ResponsesBody
from multilora_gateway.responses.turn import ResponseTurn

router = APIRouter(tags=["OpenAI"])
_RESPONSES = "/v1/responses"


@router.post(
    _RESPONSES, openapi_extra=request_schema(ResponsesBody, _RESPONSES), response_model=None
)
async def responses(request: Request, context: Context) -> Response:
    """The model's next items in a conversation."""
    body = parse(ResponsesBody, await request.body())
    job = await chat_job(body.as_chat(), context)
    return await respond_in_turn(request, ResponseTurn(body, job), bool(body.stream))
