"""The sampling parameter `grammar`, as TGI's clients write it, → Grammar.

{"type": "json", "value": schema}           schema: an object, or its JSON text
{"type": "json_schema", "value": {"name": …, "schema": schema}}     or the schema itself
{"type": "json_object"}                     any JSON object
{"type": "regex", "value": expression}      the whole answer matches it
"""

import json
from typing import Any

from multilora.errors import invalid
from multilora.request import Grammar

_KINDS = ("json", "json_schema", "json_object", "regex")
_SHAPE = 'send for example {"type": "json", "value": {"type": "object", "properties": {…}}}'


def read_grammar(name: str, value: Any) -> Grammar:
    """`value` is an object or its JSON text; raises RequestError (INVALID_ARG)."""
    given = _object(name, value)
    kind = given.get("type")
    if kind not in _KINDS:
        raise invalid(f"{name}: type must be one of {', '.join(_KINDS)}; got {kind!r}")
    unknown = given.keys() - {"type", "value"}
    if unknown:
        raise invalid(f"{name}: unknown name {sorted(unknown)[0]!r}; known are type and value")
    if kind == "json_object":
        return Grammar("json", '{"type": "object"}')
    inner = given.get("value")
    if inner is None:
        raise invalid(f"{name}: value is missing; {_SHAPE}")
    if kind == "regex":
        if not isinstance(inner, str) or not inner:
            raise invalid(f"{name}: value must be a regular expression as a string; got {inner!r}")
        return Grammar("regex", inner)
    schema = _object(f"{name}: value", inner)
    if kind == "json_schema":
        schema = _unwrapped(name, schema)
    return Grammar("json", json.dumps(schema, ensure_ascii=False))


def _unwrapped(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """The schema of {"name", "schema"}; a schema without that around it stays as it is."""
    if "schema" not in value or value.keys() - {"name", "schema", "description", "strict"}:
        return value
    return _object(f"{name}: schema", value["schema"])


def _object(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise invalid(f"{name} is not JSON ({error}); {_SHAPE}") from None
    if not isinstance(value, dict):
        raise invalid(f"{name} must be a JSON object; got {type(value).__name__}; {_SHAPE}")
    return value
