"""The grammar that forces a tool call, and which tools may be called."""

import json
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from multilora_gateway.errors import GatewayError
from multilora_gateway.openai.tools import (
    AllowedTools,
    ChosenTool,
    Tool,
    call_grammar,
    is_forced,
    usable,
)

TREE = {
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/node"}},
    "required": ["root"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
            "required": ["value"],
        }
    },
}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str, parameters: dict[str, Any] | None = None) -> Tool:
    return Tool.model_validate({"function": {"name": name, "parameters": parameters}})


def test_names_have_up_to_128_characters() -> None:
    assert tool("x" * 128).function.name == "x" * 128
    with pytest.raises(ValidationError):
        tool("x" * 129)


def allowed(mode: str, *names: str) -> AllowedTools:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    limits = {"mode": mode, "tools": tools}
    return AllowedTools.model_validate({"type": "allowed_tools", "allowed_tools": limits})


def chosen(name: str) -> ChosenTool:
    return ChosenTool.model_validate({"type": "function", "function": {"name": name}})


@pytest.mark.parametrize(
    ("call", "fits"),
    [
        ({"name": "grow", "arguments": {"root": {"value": 1, "next": {"value": 2}}}}, True),
        ({"name": "grow", "arguments": {"root": {"value": 1, "next": {"value": "2"}}}}, False),
        ({"name": "weather", "arguments": {"city": "Bern"}}, True),
        ({"name": "weather", "arguments": {"root": {"value": 1}}}, False),
        ({"name": "now", "arguments": {"anything": [1]}}, True),
        ({"name": "other", "arguments": {}}, False),
        ({"name": "now"}, False),
    ],
)
def test_the_grammar_allows_exactly_the_calls_of_the_tools(call: Any, fits: bool) -> None:
    grammar = call_grammar([tool("grow", TREE), tool("weather", CITY), tool("now")], "arguments")
    assert grammar["type"] == "json"
    validator = jsonschema.Draft202012Validator(grammar["value"])
    assert validator.is_valid(call) is fits


def test_the_grammar_library_compiles_it() -> None:
    import llguidance

    for tools in ([tool("grow", TREE)], [tool("grow", TREE), tool("weather", CITY)]):
        grammar = call_grammar(tools, "parameters")["value"]
        text = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(grammar))
        assert not llguidance.LLMatcher.validate_grammar(text)


def test_the_choice_limits_the_tools() -> None:
    tools = [tool("a"), tool("b")]
    assert usable(tools, None) == usable(tools, "auto") == usable(tools, "required") == tools
    assert usable(tools, "none") == [] == usable(None, "auto")
    assert usable(tools, chosen("b")) == tools[1:]
    assert [is_forced(choice) for choice in (None, "auto", "none")] == [False] * 3
    assert is_forced("required") and is_forced(chosen("a"))
    assert usable(tools, allowed("auto", "b")) == tools[1:]
    assert not is_forced(allowed("auto", "b")) and is_forced(allowed("required", "b"))


def test_a_choice_without_its_tool_is_refused() -> None:
    with pytest.raises(GatewayError, match="there is no tool 'c'"):
        usable([tool("a")], chosen("c"))
    with pytest.raises(GatewayError, match="there is no tool 'd'"):
        usable([tool("a")], allowed("auto", "a", "d"))
    with pytest.raises(GatewayError, match="needs tools"):
        usable(None, "required")
