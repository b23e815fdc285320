"""Values of JSON bodies that every part behind the gateway can take."""

import json
from typing import Annotated, Any

from pydantic import AfterValidator


def _unicode(text: str) -> str:
    """JSON can name half a character ("\\ud800"), which no tokenizer and no other JSON takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the string is not valid unicode") from None
    return text


def _sendable(schema: dict[str, Any]) -> dict[str, Any]:
    """Such strings, numbers that JSON has not, and endless nesting are refused anywhere in it."""
    try:
        _unicode(json.dumps(schema, ensure_ascii=False, allow_nan=False))
    except RecursionError:
        raise ValueError("the object is nested too deeply") from None
    return schema


Text = Annotated[str, AfterValidator(_unicode)]
Schema = Annotated[dict[str, Any], AfterValidator(_sendable)]
