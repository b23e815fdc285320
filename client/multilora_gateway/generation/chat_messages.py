"""The messages of a chat, in OpenAI's shapes."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import WithJsonSchema

from multilora_gateway.errors import invalid
from multilora_gateway.http.json_values import Schema
from multilora_text import messages as text_messages
from multilora_text.errors import TextError

# What one must be is checked by `template_messages`.
ChatMessage = Annotated[
    Schema,
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "role": {"type": "string"},
                "content": {
                    "anyOf": [
                        {"type": "string"},
                        {"type": "array", "items": {"type": "object"}},
                        {"type": "null"},
                    ]
                },
            },
            "required": ["role"],
        }
    ),
]


def goes_on(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last message is an assistant's that ends in a text, which TGI and Anthropic
    continue."""
    last = messages[-1] if messages else {}
    says = bool(last.get("content")) and not last.get("tool_calls")
    return last.get("role") == "assistant" and says


def template_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as a chat template takes them; raises GatewayError (validation)."""
    try:
        return text_messages.template_messages(messages)
    except TextError as error:
        raise invalid(str(error), "messages") from None


def tool_call(where: str, param: str, *, call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    """A call as one of an assistant's tool_calls; `arguments` is an object, or the text of one.
    GatewayError names `where` the call stands, in the field `param` of a body."""
    if not isinstance(name, str):
        raise invalid(f"{where}.name must be a string: that of the tool", param)
    function = {"name": name, "arguments": arguments}
    try:
        return text_messages.template_call(where, {"id": call_id, "function": function})
    except TextError as error:
        raise invalid(str(error), param) from None
