"""JSON bodies of the OpenAI API; an error names the field that is wrong."""

import difflib
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from multilora_gateway.errors import GatewayError, invalid
from multilora_gateway.http.json_values import Fields

_UNION_TAG = re.compile(r"[A-Z].*|.*\[.*|str|int|float|bool|none|constrained-.*|function-.*")
_LONGEST = 200  # characters of a client's own words in an error


_F = TypeVar("_F", bound=Fields)


def parse(kind: type[_F], body: bytes) -> _F:
    """Raises GatewayError (validation) for the first thing that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(kind, error) from None


def request_schema(kind: type[Fields], path: str) -> dict[str, Any]:
    """The body of a POST route at `path`, for the API's description."""
    place = path.replace("/", "~1")
    where = f"#/paths/{place}/post/requestBody/content/application~1json/schema/$defs/"
    schema = kind.model_json_schema(ref_template=where + "{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _refusal(kind: type[Fields], errors: ValidationError) -> GatewayError:
    error = errors.errors(include_url=False, include_context=False)[0]
    loc = error["loc"]
    if error["type"] == "json_invalid":
        return invalid(f"the body is not valid JSON: {error['msg']}")
    if not loc:
        return invalid(f"the body must be a JSON object; {error['msg']}")
    param = str(loc[0])[:_LONGEST]
    path = ".".join(str(part) for part in loc if not _is_tag(part))[:_LONGEST]
    if error["type"] == "extra_forbidden":
        return invalid(f"unknown field {path!r}{_hint(kind, loc)}", param)
    if error["type"] == "missing" or (error["input"] is None and isinstance(loc[-1], str)):
        return invalid(f"{path} is missing; it is required", param)
    message = error["msg"].removeprefix("Value error, ")
    return invalid(f"{path}: {message[:1].lower()}{message[1:]}", param)


def _hint(kind: type[Fields], loc: Sequence[int | str]) -> str:
    if len(loc) > 1:
        return "; leave it out"
    close = difflib.get_close_matches(str(loc[0])[:_LONGEST], kind.model_fields, n=1)
    return f"; did you mean {close[0]}?" if close else "; leave it out"


def _is_tag(part: int | str) -> bool:
    """Whether pydantic means an alternative of a union, not a field, by a part of a place."""
    return isinstance(part, str) and bool(_UNION_TAG.fullmatch(part))
