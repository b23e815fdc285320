"""Bodies that cannot be read: errors that name the field, and the closest known name or place."""

import difflib
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from multilora_gateway.errors import GatewayError, invalid
from multilora_gateway.generation.adapter_selection import OTHER_NAMES
from multilora_gateway.tgi.parameters import GenerateRequest, Parameters

_BODY_FIELDS = tuple(GenerateRequest.model_fields)
_PARAMETERS = tuple(name for name in Parameters.model_fields if name not in OTHER_NAMES)
_LONGEST = 100  # characters of a client's own words in an error
_BODY = 'the body must be a JSON object such as {"inputs": "Hello"}, sent as application/json'


class ErrorBody(BaseModel):
    """TGI's error object, for the API's description."""

    error: str
    error_type: str


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 415, 422, 424, 429, 500, 503)
}


# The description of a body that a route reads before it knows which API the body belongs to.
_SCHEMA = {"$ref": f"#/components/schemas/{GenerateRequest.__name__}"}
BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}}


class TgiRoute(APIRoute):
    """Turns FastAPI's complaints about a body into GatewayErrors."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise explained(error.errors()[0]) from None
            except HTTPException as error:
                if error.status_code != 400:
                    raise
                raise not_json("not UTF-8, or nested too deeply") from None

        return handler


def json_body(raw: bytes) -> Any:
    """What a body holds, None for an empty one; raises GatewayError."""
    try:
        return json.loads(raw) if raw else None
    except (ValueError, RecursionError) as error:
        raise not_json(error) from None


def generate_request(body: Any) -> GenerateRequest:
    """Raises GatewayError."""
    try:
        return GenerateRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise explained({**first, "loc": ("body", *first["loc"])}) from None


def explained(complaint: Mapping[str, Any]) -> GatewayError:
    """One of pydantic's complaints in words."""
    place = [_printable(part) for part in complaint["loc"][1:]]
    kind = complaint["type"]
    if kind == "json_invalid":
        return not_json(complaint.get("ctx", {}).get("error", complaint["msg"]))
    if not place:
        return invalid(_BODY)
    name = ".".join(place)
    if kind == "extra_forbidden":
        return invalid(f"unknown field `{name}`; {_hint(place)}", name)
    if kind == "missing" or (complaint["input"] is None and isinstance(complaint["loc"][-1], str)):
        return invalid(f"missing field `{name}`", name)
    message = _printable(complaint["msg"].removeprefix("Value error, "))
    return invalid(f"`{name}`: {message}", name)


def _hint(place: Sequence[str]) -> str:
    """What to do about the unknown field at `place`."""
    outside, name = place[:-1], place[-1]
    if outside not in ([], ["parameters"]):
        return "leave it out"
    if name in OTHER_NAMES:
        return "name the adapter in `parameters.adapter_id`"
    if not outside and name in _PARAMETERS:
        return f"put it into `parameters`: `parameters.{name}`"
    if outside and name in _BODY_FIELDS:
        return "move it out of `parameters`, beside `inputs`"
    known = _PARAMETERS if outside else _BODY_FIELDS
    close = difflib.get_close_matches(name, known, n=1)
    if not close and not outside:
        inside = difflib.get_close_matches(name, _PARAMETERS, n=1)
        close = [f"parameters.{other}" for other in inside]
    return f"did you mean `{close[0]}`?" if close else f"known are {', '.join(known)}"


def not_json(reason: object) -> GatewayError:
    return GatewayError(
        400, "validation", f"the body is not JSON ({_printable(reason)}); correct it"
    )


def _printable(part: object) -> str:
    """A client's own words, cut short and without the lone surrogates that JSON can name."""
    return str(part)[:_LONGEST].encode(errors="replace").decode()
