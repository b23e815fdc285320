"""The messages of a chat: OpenAI's shapes → what chat templates expect."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import TypeAdapter

from multilora_gateway.errors import invalid
from multilora_gateway.http.json_values import Items, OpenFields, Schema, Text

_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(Schema)


class ContentPart(OpenFields):
    type: Text
    text: Text | None = None


class CalledFunction(OpenFields):
    """`arguments` is JSON text in OpenAI's API; TGI's clients send the object itself."""

    name: Text
    arguments: Text | Schema | None = None


class ToolCallMessage(OpenFields):
    function: CalledFunction
    id: Text | None = None


class ChatMessage(OpenFields):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Items[ContentPart] | None = None
    name: Text | None = None
    tool_calls: Items[ToolCallMessage] | None = None
    tool_call_id: Text | None = None


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as a chat template takes them; raises GatewayError (validation)."""
    if not messages:
        raise invalid("messages is empty; send at least one message", "messages")
    return [_plain(number, message) for number, message in enumerate(messages)]


def _plain(number: int, message: ChatMessage) -> dict[str, Any]:
    where = f"messages.{number}"
    plain: dict[str, Any] = {
        # Templates know no role developer, which is the newer name of system.
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(where, message),
    }
    if message.name:
        plain["name"] = message.name
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [_call(where, call) for call in message.tool_calls]
    return plain


def _text(where: str, message: ChatMessage) -> str:
    content = message.content
    if content is None:
        if message.role == "assistant":  # a message that only calls tools
            return ""
        raise invalid(f"{where}.content is missing; it is required", "messages")
    if isinstance(content, str):
        return content
    for part in content:
        if part.type != "text" or part.text is None:
            raise invalid(
                f"{where}.content has a part of type {part.type[:50]!r}; this model reads only "
                'text: {"type": "text", "text": "…"}',
                "messages",
            )
    return "".join(part.text or "" for part in content)


def _call(where: str, call: ToolCallMessage) -> dict[str, Any]:
    arguments: Any = "{}" if call.function.arguments is None else call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = _OBJECT.validate_python(json.loads(arguments or "{}"))
        except (ValueError, RecursionError):
            arguments = None
    if arguments is None:
        raise invalid(
            f"{where}.tool_calls: the arguments of {call.function.name[:50]!r} are not a JSON "
            "object; send them as they came",
            "messages",
        )
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id or "", "type": "function", "function": function}
