"""The input of POST /v1/responses → the messages of a chat.

Law: what a model said in one turn becomes one message again: its reasoning, its text and its calls,
which come as items of their own.
"""

from collections.abc import Sequence
from typing import Any

from multilora_gateway.errors import invalid
from multilora_gateway.generation.chat_messages import tool_call
from multilora_gateway.openai.turn import text_parts

_PARAM = "input"
_SAID = ("input_text", "output_text", "text")
_SHOWN = 50  # characters of a client's own words in an error


def chat_messages(given: str | Sequence[dict[str, Any]], instructions: str | None) -> list[Any]:
    """Raises GatewayError, which names the item that is wrong."""
    conversation = _Conversation()
    if instructions:
        conversation.messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not given:
        raise invalid("input is empty; send a text, or at least one item", _PARAM)
    for number, item in enumerate(given):
        conversation.add(f"input.{number}", item)
    return conversation.closed()


class _Conversation:
    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._turn: dict[str, Any] | None = None  # the model's message that is not closed yet

    def add(self, where: str, item: dict[str, Any]) -> None:
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            self._message(where, item)
        elif kind == "reasoning":
            self._reasoning(where, item)
        elif kind == "function_call":
            self._call(where, item)
        elif kind == "function_call_output":
            self._output(where, item)
        else:
            raise invalid(
                f"{where}: an item of type {str(kind)[:_SHOWN]!r} is not supported; send items of "
                "type message, reasoning, function_call, function_call_output",
                _PARAM,
            )

    def closed(self) -> list[dict[str, Any]]:
        for message in self.messages:
            if message["content"] is None and "tool_calls" not in message:
                message["content"] = ""
        return self.messages

    def _message(self, where: str, item: dict[str, Any]) -> None:
        role, content = item.get("role"), item.get("content")
        if not isinstance(role, str):
            raise invalid(f"{where}.role must be a string, such as user", _PARAM)
        parts = text_parts(f"{where}.content", content, _SAID, _PARAM)
        text = "".join(part["text"] for part in parts)
        role = "system" if role == "developer" else role
        last = self.messages[-1] if self.messages else None
        if role == "assistant":
            if self._turn is None or self._turn.get("content") or "tool_calls" in self._turn:
                self._begin()
            self._said()["content"] = text
        elif role == "system" and last and last["role"] == "system":
            # Instructions and what else comes first: few templates take a second such message.
            last["content"] += f"\n\n{text}"
        else:
            self._turn = None
            self.messages.append({"role": role, "content": text})

    def _reasoning(self, where: str, item: dict[str, Any]) -> None:
        content = item.get("content") or item.get("summary") or []
        parts = text_parts(where, content, ("reasoning_text", "summary_text"), _PARAM)
        self._begin()
        if text := "".join(part["text"] for part in parts):
            self._said()["reasoning_content"] = text

    def _call(self, where: str, item: dict[str, Any]) -> None:
        call = tool_call(
            where,
            _PARAM,
            call_id=item.get("call_id"),
            name=item.get("name"),
            arguments=item.get("arguments") or "{}",
        )
        self._said().setdefault("tool_calls", []).append(call)

    def _output(self, where: str, item: dict[str, Any]) -> None:
        parts = text_parts(f"{where}.output", item.get("output"), _SAID, _PARAM)
        self._turn = None
        self.messages.append(
            {"role": "tool", "tool_call_id": item.get("call_id"), "content": parts}
        )

    def _begin(self) -> None:
        self._turn = {"role": "assistant", "content": None}
        self.messages.append(self._turn)

    def _said(self) -> dict[str, Any]:
        if self._turn is None:
            self._begin()
        assert self._turn is not None
        return self._turn
