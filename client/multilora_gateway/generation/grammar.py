"""The engine's `grammar`: a JSON schema, any JSON object, or a regular expression.

TGI reads a schema that has `properties`, and states no other kind, as the schema of an object; JSON
Schema itself lets such a schema accept any string or number too.
"""

from typing import Any

from multilora_gateway.errors import invalid

_DECIDES = frozenset(("type", "$ref", "anyOf", "oneOf", "enum", "const"))
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


def json_grammar(schema: dict[str, Any] | str) -> dict[str, Any]:
    """JSON that fits a schema, which is an object or the text of one."""
    return {"type": "json", "value": schema}


def json_object_grammar() -> dict[str, Any]:
    """Any JSON object."""
    return {"type": "json_object"}


def regex_grammar(pattern: str) -> dict[str, Any]:
    return {"type": "regex", "value": pattern}


def with_object_types(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with `"type": "object"` written where TGI takes it for granted."""
    try:
        return _typed(schema)
    except RecursionError:
        raise invalid("the JSON schema is nested too deeply; simplify it") from None


def _typed(schema: Any) -> Any:
    if not isinstance(schema, dict):  # true, false, or what the engine refuses
        return schema
    typed: dict[str, Any] = dict(schema)
    for name in _NAMED:
        if isinstance(inner := schema.get(name), dict):
            typed[name] = {key: _typed(each) for key, each in inner.items()}
    for name in _LISTED:
        if isinstance(inner := schema.get(name), list):
            typed[name] = [_typed(each) for each in inner]
    for name in _SINGLE:
        if name in schema:
            typed[name] = _typed(schema[name])
    if "properties" in schema and _DECIDES.isdisjoint(schema):
        typed["type"] = "object"
    return typed
