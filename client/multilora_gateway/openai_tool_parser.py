"""Tool calls in the text of an answer, found while it grows.

Laws: however the text is split, the parts put together are the same; what may still become a call
is held back; what looks like a call but is none, or names no known tool, stays text.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_PYTHON_TAG = "<|python_tag|>"
_SEPARATORS = "; \t\r\n"
_ESCAPED = re.compile(r"\\.", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is the text of a JSON object."""

    name: str
    arguments: str


Part = str | ToolCall


class ToolParser(Protocol):
    """Of one answer."""

    def push(self, text: str) -> list[Part]:
        """What became certain with this text."""
        ...

    def finish(self) -> list[Part]:
        """The rest, at the end of the answer."""
        ...


class _Parts:
    """Parts in order, without the white space around calls."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._space = ""
        self._called = False

    def text(self, text: str) -> None:
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        if kept:
            self._parts.append(kept)

    def call(self, call: ToolCall) -> None:
        self._space = ""
        self._called = True
        self._parts.append(call)

    def end(self) -> None:
        if self._space and not self._called:
            self._parts.append(self._space)
        self._space = ""

    def take(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts


class HermesParser:
    """<tool_call>{"name": …, "arguments": …}</tool_call>, of Hermes and Qwen."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._parts = _Parts()
        self._held = ""

    def push(self, text: str) -> list[Part]:
        self._held += text
        while self._step():
            pass
        return self._parts.take()

    def finish(self) -> list[Part]:
        call = None
        if self._held.startswith(_OPEN):  # the model may end without closing it
            call = _call(_json(self._held[len(_OPEN) :]), self._names)
        if call:
            self._parts.call(call)
        else:
            self._parts.text(self._held)
        self._held = ""
        self._parts.end()
        return self._parts.take()

    def _step(self) -> bool:
        """Whether there may be more to find."""
        if not self._held.startswith(_OPEN):
            start = self._held.find(_OPEN)
            certain = start if start >= 0 else len(self._held) - _overlap(self._held, _OPEN)
            self._parts.text(self._held[:certain])
            self._held = self._held[certain:]
            return start >= 0
        end = self._held.find(_CLOSE)
        while end >= 0 and _in_string(self._held[len(_OPEN) : end]):
            end = self._held.find(_CLOSE, end + 1)
        if end < 0:
            return False
        whole, self._held = self._held[: end + len(_CLOSE)], self._held[end + len(_CLOSE) :]
        if call := _call(_json(whole[len(_OPEN) : -len(_CLOSE)]), self._names):
            self._parts.call(call)
        else:
            self._parts.text(whole)
        return True


class JsonParser:
    """{"name": …, "parameters": …} as the whole answer, of Llama 3 and of forced calls.

    Several may follow each other, after semicolons or white space.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._parts = _Parts()
        self._held = ""
        self._plain = False  # it is text to the end

    def push(self, text: str) -> list[Part]:
        self._held += text
        while not self._plain and self._step():
            pass
        if self._plain:
            self._parts.text(self._held)
            self._held = ""
        return self._parts.take()

    def finish(self) -> list[Part]:
        self._parts.text(self._held)
        self._held = ""
        self._parts.end()
        return self._parts.take()

    def _step(self) -> bool:
        """Whether there may be one more call."""
        start = self._held.lstrip(_SEPARATORS).removeprefix(_PYTHON_TAG).lstrip()
        if not start.startswith("{"):
            self._plain = bool(start) and not _PYTHON_TAG.startswith(start)
            return False
        if "}" not in start:
            return False
        try:
            value, end = json.JSONDecoder().raw_decode(start)
        except (ValueError, RecursionError):
            return False  # not complete, or never: the end will tell
        call = _call(value, self._names)
        if call is None:
            self._plain = True
            return False
        self._parts.call(call)
        self._held = start[end:]
        return bool(self._held)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _in_string(text: str) -> bool:
    """Whether JSON that begins so goes on inside a string."""
    return _ESCAPED.sub("", text).count('"') % 2 == 1


def _call(value: Any, names: Collection[str]) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    if not isinstance(name, str) or name not in names:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):  # encoded once more
        arguments = _json(arguments or "{}")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that begins `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
