"""Schemas without a type: what TGI takes for an object is one here, and nothing else."""

from typing import Any

import pytest

from multilora_gateway.errors import GatewayError
from multilora_gateway.generation.grammar import with_object_types

INNER: dict[str, Any] = {"properties": {"n": {"type": "integer"}}, "required": ["n"]}
OBJECT = {"type": "object", **INNER}


@pytest.mark.parametrize("name", ["properties", "$defs"])
def test_properties_make_an_object_at_every_depth(name: str) -> None:
    given = {"type": "object", name: {"a": INNER, "properties": {"type": "string"}}}
    found = with_object_types(given)
    assert found == {"type": "object", name: {"a": OBJECT, "properties": {"type": "string"}}}
    assert with_object_types(INNER) == OBJECT
    assert with_object_types({"items": INNER}) == {"items": OBJECT}
    assert with_object_types({"anyOf": [INNER, True]}) == {"anyOf": [OBJECT, True]}


@pytest.mark.parametrize(
    "says",
    [
        {"type": "string"}, {"type": ["object", "null"]}, {"$ref": "#/$defs/a"},
        {"anyOf": [{"type": "null"}]}, {"enum": [1]}, {"const": 1}, {"oneOf": [True]},
    ],
)  # fmt: skip
def test_a_schema_that_says_what_it_is_stays_as_it_is(says: dict[str, Any]) -> None:
    assert with_object_types({**INNER, **says}) == {**INNER, **says}


def test_a_schema_without_properties_stays_as_it_is() -> None:
    for schema in ({}, {"required": ["n"]}, {"enum": [{"properties": {}}]}):
        assert with_object_types(schema) == schema


def test_a_schema_of_endless_depth_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"items": deep}
    with pytest.raises(GatewayError, match="nested too deeply"):
        with_object_types(deep)
