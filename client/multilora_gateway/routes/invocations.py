"""POST /invocations, SageMaker's route: whatever POST /, the chats or the completions take.

Only this route reads a body before it knows which API the body belongs to.
"""

import json
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from multilora_gateway.generation.context import Context
from multilora_gateway.routes.openai import chat_completions, completions
from multilora_gateway.routes.tgi import compatible
from multilora_gateway.tgi.bodies import ERRORS, explained, not_json
from multilora_gateway.tgi.parameters import GenerateRequest

router = APIRouter(tags=["TGI"], responses=ERRORS)
_SCHEMA = {"$ref": f"#/components/schemas/{GenerateRequest.__name__}"}
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}}


@router.post("/invocations", openapi_extra=_BODY, response_model=None)
async def invocations(request: Request, context: Context) -> Response:
    """As POST /; with `messages` as /v1/chat/completions, with `prompt` as /v1/completions."""
    body = _json(await request.body())
    if isinstance(body, dict) and "inputs" not in body:
        if "messages" in body:
            return await chat_completions(request, context)
        if "prompt" in body:
            return await completions(request, context)
    return await compatible(request, _generate_request(body), context)


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except (ValueError, RecursionError) as error:
        raise not_json(error) from None


def _generate_request(body: Any) -> GenerateRequest:
    try:
        return GenerateRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise explained({**first, "loc": ("body", *first["loc"])}) from None
