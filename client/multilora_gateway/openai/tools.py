"""The tools of a chat: which may be called, and the grammar that forces a call."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from multilora_gateway.errors import invalid
from multilora_gateway.generation.grammar import json_grammar
from multilora_gateway.http.json_values import Fields, Items, Text

_ANYTHING = {"type": "object"}
_WORDS = ("auto", "none", "required")

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


class Function(Fields):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Any = None  # accepted without effect


class Tool(Fields):
    type: Literal["function"] | None = None
    function: Function
    defer_loading: Any = None  # accepted without effect

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates show it to the model."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        function["parameters"] = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


class ChosenFunction(Fields):
    name: str


class ChosenTool(Fields):
    type: Literal["function"] | None = None
    function: ChosenFunction


class AllowedFunctions(Fields):
    mode: Literal["auto", "required"]
    tools: Items[ChosenTool]


class AllowedTools(Fields):
    """Only some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedFunctions


# A name alone is TGI's way to choose a function.
ToolChoice = Literal["auto", "none", "required"] | ChosenTool | AllowedTools | Text


def usable(tools: Sequence[Tool] | None, choice: ToolChoice | None) -> list[Tool]:
    """The tools that the answer may call; GatewayError when the choice does not fit the tools."""
    tools = list(tools or ())
    if choice == "none":
        return []
    if isinstance(choice, AllowedTools):
        chosen = choice.allowed_tools.tools
        tools = _named(tools, {each.function.name for each in chosen})
    elif name := _chosen(choice):
        tools = _named(tools, {name})
    if is_forced(choice) and not tools:
        raise invalid('tool_choice "required" needs tools; send some', "tool_choice")
    return tools


def is_forced(choice: ToolChoice | None) -> bool:
    if isinstance(choice, AllowedTools):
        return choice.allowed_tools.mode == "required"
    return choice == "required" or bool(_chosen(choice))


def _chosen(choice: ToolChoice | None) -> str:
    """The name of the one function that must be called, "" without any."""
    if isinstance(choice, ChosenTool):
        return choice.function.name
    return choice if isinstance(choice, str) and choice not in _WORDS else ""


def _named(tools: Sequence[Tool], names: set[str]) -> list[Tool]:
    if unknown := names - {tool.function.name for tool in tools}:
        name = min(unknown)[:64]
        raise invalid(
            f"tool_choice: there is no tool {name!r} in tools; add it there", "tool_choice"
        )
    return [tool for tool in tools if tool.function.name in names]


def call_grammar(tools: Sequence[Tool], arguments: str) -> dict[str, Any]:
    """The engine's `grammar` for exactly one call: {"name": …, `arguments`: …}. Raises
    GatewayError."""
    calls = [_call(number, tool, arguments) for number, tool in enumerate(tools)]
    try:
        definitions = {
            _definition(number): _moved(tool.function.parameters or _ANYTHING, number)
            for number, tool in enumerate(tools)
        }
    except RecursionError:
        raise invalid(
            "the parameters of a tool are nested too deeply; simplify them", "tools"
        ) from None
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return json_grammar({**schema, "$defs": definitions})


def _call(number: int, tool: Tool, arguments: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": tool.function.name},
            arguments: {"$ref": f"#/$defs/{_definition(number)}"},
        },
        "required": ["name", arguments],
        "additionalProperties": False,
    }


def _definition(number: int) -> str:
    return f"tool{number}"


def _moved(schema: Any, number: int) -> Any:
    """A schema that moves from the root of a document to definition `number`, and its references
    with it."""
    if isinstance(schema, list):
        return [_moved(item, number) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, number) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = f"#/$defs/{_definition(number)}{reference[1:]}"
    return moved
