"""Bodies that are wrong a thousand times cost no more than those that are wrong once."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from multilora_gateway.http.json_values import Body
from multilora_gateway.openai.chat import ChatBody
from multilora_gateway.openai.completions import CompletionBody
from multilora_gateway.routes import adapters as adapter_routes
from multilora_gateway.tgi.parameters import ChatTokenizeRequest, GenerateRequest

MANY = 10_000
FEW = 16  # the required fields and the alternatives of one
BODIES = (
    ChatBody, CompletionBody, GenerateRequest, ChatTokenizeRequest, adapter_routes.AdapterLoad,
    adapter_routes.AdapterUnload, adapter_routes.VllmLoad, adapter_routes.VllmUnload,
)  # fmt: skip


def models_in(kind: Any, seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """A body and all objects inside it."""
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in seen:
        seen.add(kind)
        yield kind
        for field in kind.model_fields.values():
            yield from models_in(field.annotation, seen)
    for inner in get_args(kind):
        yield from models_in(inner, seen)


_seen: set[type[BaseModel]] = set()
OBJECTS = [each for body in BODIES for each in models_in(body, _seen)]


def errors_in(kind: type[BaseModel], value: Any) -> Sequence[Any]:
    try:
        kind.model_validate(value)
    except ValidationError as error:
        return error.errors()
    return []


@pytest.mark.parametrize("element", [1, "x"])
@pytest.mark.parametrize("kind", OBJECTS)
def test_every_list_and_object_of_every_body_is_refused_for_one_thing(
    kind: type[BaseModel], element: Any
) -> None:
    wrong = [element] * MANY
    named = dict(zip(map(str, range(MANY)), wrong, strict=True))
    for name, field in kind.model_fields.items():
        for value in (wrong, [wrong], named, [named]):
            assert len(errors_in(kind, {field.alias or name: value})) < FEW, name
    assert len(errors_in(kind, named)) < FEW


def test_all_bodies_were_found() -> None:
    names = {each.__name__ for each in OBJECTS}
    assert {"AdapterMerge", "ChosenTool", "JsonGrammar", "Parameters"} <= names


@pytest.mark.parametrize("kind", OBJECTS)
def test_null_is_absent(kind: type[BaseModel]) -> None:
    """A field that may be absent may be null; one that may not is as wrong as if it were absent."""
    absent = [error["loc"] for error in errors_in(kind, {})]
    nulls = {field.alias or name: None for name, field in kind.model_fields.items()}
    assert {loc[0] for loc in absent} == {error["loc"][0] for error in errors_in(kind, nulls)}


class Point(Body):
    x: int


def test_types_are_not_converted() -> None:
    with pytest.raises(ValidationError):
        Point.model_validate({"x": "1"})


def test_nobody_passes_on_what_nobody_knows() -> None:
    assert Point.model_validate({"x": 1, "y": 2}).model_dump() == {"x": 1}


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (adapter_routes.AdapterLoad, "adapter_id"),
        (adapter_routes.AdapterLoad, "source"),
        (adapter_routes.AdapterLoad, "revision"),
        (adapter_routes.AdapterUnload, "adapter_id"),
        (adapter_routes.VllmLoad, "lora_name"),
        (adapter_routes.VllmLoad, "lora_path"),
        (adapter_routes.VllmUnload, "lora_name"),
    ],
)
def test_names_and_paths_are_text_of_a_sane_length(kind: type[BaseModel], field: str) -> None:
    given = {"adapter_id": "a", "lora_name": "a", "lora_path": "/a"}
    given = {name: value for name, value in given.items() if name in kind.model_fields}
    kind.model_validate(given | {field: "/" + "n" * 4000})
    for value, said in (("\ud800", "unicode"), ("/n" * 2049, "at most 4096 characters")):
        with pytest.raises(ValidationError, match=said):
            kind.model_validate(given | {field: value})
