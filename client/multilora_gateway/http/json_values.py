"""Types of JSON bodies whose values every part behind the gateway can take.

Law: an error names only the first wrong item of a list and the first unknown name of an object. A
report of all of them would cost seconds and gigabytes for a body of two megabytes.
"""

import json
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

_LONGEST_NAME = 4096  # characters, as of a path


def _unicode(text: str) -> str:
    """Refuses a lone surrogate, which JSON can name ("\\ud800") but no tokenizer and no other JSON
    accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the string is not valid unicode") from None
    return text


def _sendable(schema: dict[str, Any]) -> dict[str, Any]:
    """Refuses lone surrogates, numbers that JSON does not have, and endless nesting."""
    try:
        _unicode(json.dumps(schema, ensure_ascii=False, allow_nan=False))
    except RecursionError:
        raise ValueError("the object is nested too deeply") from None
    return schema


_T = TypeVar("_T")
Items = Annotated[list[_T], Field(fail_fast=True)]
Text = Annotated[str, AfterValidator(_unicode)]
Name = Annotated[str, Field(max_length=_LONGEST_NAME), AfterValidator(_unicode)]
Schema = Annotated[dict[str, Any], AfterValidator(_sendable)]


class Fields(BaseModel):
    """A JSON object without unknown names. Types are not converted: "5" is not a number."""

    model_config = ConfigDict(
        extra="allow",  # unknown names are collected at little cost, and refused below
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra={"additionalProperties": False},
    )

    @model_validator(mode="after")
    def _no_more(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            kind = type(self).__name__
            raise ValidationError.from_exception_data(
                kind, [{"type": "extra_forbidden", "loc": (name,), "input": value}]
            )
        return self


class OpenFields(Fields):
    """An object that clients send back as they received it: other names are ignored."""

    model_config = ConfigDict(extra="ignore", json_schema_extra=None)
