"""Tools of a chat: what may be called, and the grammar that forces a call."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from multilora_gateway.errors import invalid
from multilora_gateway.openai_fields import Fields, OpenFields

_ANYTHING = {"type": "object"}


class Function(OpenFields):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(OpenFields):
    type: Literal["function"] = "function"
    function: Function

    def for_template(self) -> dict[str, Any]:
        """As chat templates show it to the model."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        function["parameters"] = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


class ChosenFunction(OpenFields):
    name: str


class ChosenTool(Fields):
    type: Literal["function"] = "function"
    function: ChosenFunction


ToolChoice = Literal["auto", "none", "required"] | ChosenTool


def usable(tools: Sequence[Tool] | None, choice: ToolChoice | None) -> list[Tool]:
    """The tools that the answer may call; GatewayError when the choice does not fit the tools."""
    tools = list(tools or ())
    if choice == "none":
        return []
    if isinstance(choice, ChosenTool):
        name = choice.function.name
        tools = [tool for tool in tools if tool.function.name == name]
        if not tools:
            raise invalid(f"tool_choice: there is no tool {name[:64]!r} in tools", "tool_choice")
    if choice == "required" and not tools:
        raise invalid('tool_choice "required" needs tools; send some', "tool_choice")
    return tools


def is_forced(choice: ToolChoice | None) -> bool:
    return choice == "required" or isinstance(choice, ChosenTool)


def call_grammar(tools: Sequence[Tool], arguments: str) -> dict[str, Any]:
    """The engine's `grammar` for exactly one call: {"name": …, `arguments`: …}."""
    calls = [_call(number, tool, arguments) for number, tool in enumerate(tools)]
    definitions = {
        _definition(number): _moved(tool.function.parameters or _ANYTHING, number)
        for number, tool in enumerate(tools)
    }
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {"type": "json", "value": {**schema, "$defs": definitions}}


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
    """A schema that is no longer the whole document: its references start at its new place."""
    if isinstance(schema, list):
        return [_moved(item, number) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, number) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = f"#/$defs/{_definition(number)}{reference[1:]}"
    return moved
