"""Types of JSON bodies whose values every part behind the gateway can take.

Laws: null is absent. What is known and cannot be done is refused where it would change the answer;
what nobody here knows is ignored, and the answer says so (unknown_fields.py). Within messages,
schemas and other values that are data, every name is data.

An error names only the first wrong item of a list and the first refused name of an object. A report
of all of them would cost seconds and gigabytes for a body of two megabytes.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from multilora_gateway.http.unknown_fields import Place, current

_LONGEST_NAME = 4096  # characters, as of a path
_T = TypeVar("_T")


def _unicode(text: str) -> str:
    """Refuses a lone surrogate, which JSON can name ("\\ud800") but no tokenizer and no other JSON
    accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the string is not valid unicode") from None
    return text


def _sendable(value: _T) -> _T:
    """Refuses lone surrogates, numbers that JSON does not have, and endless nesting."""
    try:
        _unicode(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except RecursionError:
        raise ValueError("the value is nested too deeply") from None
    return value


Items = Annotated[list[_T], Field(fail_fast=True)]
Text = Annotated[str, AfterValidator(_unicode)]
Name = Annotated[str, Field(max_length=_LONGEST_NAME), AfterValidator(_unicode)]
Schema = Annotated[dict[str, Any], AfterValidator(_sendable)]
Value = Annotated[Any, AfterValidator(_sendable)]  # may be sent back


def only(*values: Any, instead: str = "leave it out") -> AfterValidator:
    """The validator of a field that has these values here, or is absent; `instead` is what a client
    must do otherwise."""

    def check(given: Any) -> Any:
        if given is None or any(
            given == value and isinstance(given, bool) == isinstance(value, bool)
            for value in values
        ):
            return given
        if not values:
            raise ValueError(f"not supported; {instead}")
        raise ValueError(f"only {' or '.join(map(json.dumps, values))} is supported; {instead}")

    return AfterValidator(check)


Absent = Annotated[Any, only()]
False_ = Annotated[Any, only(False)]
True_ = Annotated[Any, only(True)]


class Fields(BaseModel):
    """A JSON object. Types are not converted: "5" is not a number."""

    model_config = ConfigDict(
        extra="allow",  # Unknown names are collected at little cost, for the Body to take away.
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @classmethod
    def misplaced(cls, name: str) -> bool:
        """Whether `name`, which is unknown here, is a field of another place of the body. It is
        refused: a client that is not understood there would get another answer."""
        return False


class OpenFields(Fields):
    """An object that is data, such as a message: other names are no fields."""

    model_config = ConfigDict(extra="ignore")


class Body(Fields):
    """A whole body."""

    @model_validator(mode="after")
    def _without_unknown(self) -> Self:
        found: list[tuple[Place, type[Fields]]] = []
        _take_unknown(self, (), found)
        for place, kind in found:
            unknown = current()
            if unknown.strict or kind.misplaced(str(place[-1])):
                raise ValidationError.from_exception_data(
                    type(self).__name__, [{"type": "extra_forbidden", "loc": place, "input": place}]
                )
            unknown.ignore(place, kind.model_fields)
        return self


def _take_unknown(value: Fields, place: Place, found: list[tuple[Place, type[Fields]]]) -> None:
    """Moves the unknown names of `value` and of the objects inside it to `found`: where each stood,
    and in an object of which kind."""
    kind = type(value)
    if extra := value.model_extra:
        found += [((*place, name), kind) for name, given in extra.items() if given is not None]
        extra.clear()  # What nobody knows nobody may pass on.
    for name in _objects_in(kind):
        inner = getattr(value, name)
        if isinstance(inner, Fields):
            _take_unknown(inner, (*place, name), found)
        elif isinstance(inner, list):
            for number, item in enumerate(inner):
                if isinstance(item, Fields):
                    _take_unknown(item, (*place, name, number), found)


@lru_cache(maxsize=256)
def _objects_in(kind: type[Fields]) -> tuple[str, ...]:
    """The fields whose values may hold unknown names."""
    return tuple(
        name
        for name, field in kind.model_fields.items()
        if any(kind.model_config.get("extra") == "allow" for kind in _kinds_in(field.annotation))
    )


def _kinds_in(annotation: Any) -> Iterator[type[Fields]]:
    if isinstance(annotation, type) and issubclass(annotation, Fields):
        yield annotation
    for inner in get_args(annotation):
        yield from _kinds_in(inner)
