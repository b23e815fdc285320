"""The messages of POST /v1/messages, whose content is blocks → the messages of a chat."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from multilora_gateway.errors import invalid
from multilora_gateway.generation.chat_messages import tool_call
from multilora_gateway.openai.turn import text_part, text_parts

_PARAM = "messages"
_TEXT = ("text",)
_ROLES = ("user", "assistant", "system")


def chat_messages(
    given: Sequence[Mapping[str, Any]], system: str | Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """Raises GatewayError, which names the message that is wrong."""
    messages: list[dict[str, Any]] = []
    if system:
        content = text_parts("system", system, _TEXT, "system")
        messages.append({"role": "system", "content": content})
    if not given:
        raise invalid("messages is empty; send at least one message", _PARAM)
    for number, message in enumerate(given):
        messages += _messages_of(f"messages.{number}", message)
    return messages


def _messages_of(where: str, message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise invalid(f"{where}.role must be user, assistant or system", _PARAM)
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, list):
        raise invalid(f"{where}.content must be a string, or a list of blocks", _PARAM)
    places = ((f"{where}.content.{number}", block) for number, block in enumerate(blocks))
    if role == "assistant":
        yield _said(places)
    else:
        yield from _told(role, places)


def _told(role: str, blocks: Iterator[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    """Texts, and the results of tools, which are messages of their own."""
    texts: list[dict[str, str]] = []
    for where, block in blocks:
        if _type(block) != "tool_result":
            text = text_part(where, block, _TEXT, _PARAM)
            texts.append({"type": "text", "text": text})
            continue
        if texts:
            yield {"role": role, "content": texts}
        texts = []
        content = text_parts(f"{where}.content", block.get("content") or "", _TEXT, _PARAM)
        yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}
    if texts:
        yield {"role": role, "content": texts}


def _said(blocks: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for place, block in blocks:
        if _type(block) == "tool_use":
            call_id, name, given = (block.get(field) for field in ("id", "name", "input"))
            calls.append(tool_call(place, _PARAM, call_id=call_id, name=name, arguments=given))
        elif _type(block) == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        elif _type(block) != "redacted_thinking":  # which nobody here can read
            texts.append(text_part(place, block, _TEXT, _PARAM))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["content"] = message["content"] or None
        message["tool_calls"] = calls
    return message


def _type(block: Any) -> Any:
    return block.get("type") if isinstance(block, Mapping) else None
