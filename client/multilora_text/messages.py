"""The messages of a chat: as clients write them → as chat templates take them.

Laws: a template sees what the client wrote, names that nobody here knows included. Only this is
changed: a null counts as absent, but for `content`, which an assistant's message that only calls
tools has as null, or not at all; texts in parts become one; the arguments of a call become the
object whose JSON text they are; and `reasoning_content` is there under that name, whatever the
client calls it, as in transformers. What depends on the template is for the process that renders.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from multilora_text.errors import TextError

_REASONING = ("reasoning_content", "thinking", "reasoning")
_SHOWN = 50  # characters of a client's own words in an error


def template_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Raises TextError, which names the message that no template can show."""
    if not messages:
        raise TextError("messages is empty; send at least one message")
    return [_taken(f"messages.{number}", message) for number, message in enumerate(messages)]


def _taken(where: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise TextError(f"{where} must be an object with a role, a string, and content")
    taken = {name: value for name, value in message.items() if value is not None}
    content = taken.get("content")
    if content is None and taken["role"] != "assistant":
        raise TextError(f"{where}.content is missing; it is required")
    taken["content"] = None if content is None else _text(where, content)
    if "tool_calls" in taken:
        taken["tool_calls"] = _calls(where, taken["tool_calls"])
    if reasoning := next((taken[name] for name in _REASONING if name in taken), None):
        taken["reasoning_content"] = reasoning
    return taken


def _text(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TextError(f"{where}.content must be a string, or a list of parts with text")
    return "".join(_part(where, part) for part in content)


def _part(where: str, part: Any) -> str:
    kind, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else ("", None)
    if kind != "text" or not isinstance(text, str):
        raise TextError(
            f"{where}.content has a part of type {str(kind)[:_SHOWN]!r}; this model reads only "
            'text: {"type": "text", "text": "…"}'
        )
    return text


def _calls(where: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise TextError(f"{where}.tool_calls must be a list")
    return [
        template_call(f"{where}.tool_calls.{number}", call) for number, call in enumerate(calls)
    ]


def template_call(where: str, call: Any) -> dict[str, Any]:
    """One of an assistant's tool_calls, which stands at `where`; raises TextError."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name := function.get("name"), str):
        raise TextError(f'{where} must be {{"function": {{"name": …, "arguments": …}}, …}}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}", parse_constant=_refuse)
            json.dumps(arguments, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, Mapping):
        raise TextError(
            f"{where}: the arguments of {name[:_SHOWN]!r} are not a JSON object; send them as "
            "they came"
        )
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
