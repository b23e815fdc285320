"""One tool call, {"name": …, "arguments": {…}} or the arguments alone, read while the model writes
it.

Laws: the parts put together do not depend on how the text is split. A call is certain once its name
is known and its arguments begin; from then on the arguments are passed on as the model writes them,
even if the model never finishes them. A call whose keys come in another order is passed on when it
is complete.
"""

import json
import re
from collections.abc import Collection
from typing import Any

from multilora_gateway.generation.parsing.parts import CallPart, MoreArguments, ToolCall

_STRING = r'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(
    rf'\s*\{{\s*(?:"(?:type|id)"\s*:\s*{_STRING}\s*,\s*)*'
    rf'"name"\s*:\s*({_STRING})\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)',
    re.DOTALL,
)
_PARTIAL = r'"(?:[^"\\]|\\.)*\\?\Z'
_BEGIN = re.compile(rf"\s*(?:\Z|\{{\s*(?:\Z|{_PARTIAL}|({_STRING})))", re.DOTALL)
_KEYS = ("type", "id", "name", "arguments", "parameters")
_ESCAPED = re.compile(r"\\.", re.DOTALL)


class CallReader:
    """Reads one JSON object. `is_call` is None until the text decides. `rest` is None until the
    object ends; then it is the text behind the object. `begun`: the object is the arguments alone,
    of a call that is known already."""

    def __init__(self, names: Collection[str], begun: bool = False) -> None:
        self.is_call: bool | None = True if begun else None
        self.rest: str | None = None
        self._names = names
        self._held = ""  # while is_call is None
        self._outside = 0 if begun else 1  # open brackets outside of the arguments
        self._depth = self._outside  # open brackets
        self._in_arguments = True
        self._in_string = False
        self._escaped = False

    @property
    def in_string(self) -> bool:
        """Whether the text so far ends inside a JSON string."""
        if self.is_call is None:
            return _ESCAPED.sub("", self._held).count('"') % 2 == 1
        return self._in_string

    def push(self, text: str) -> list[CallPart]:
        """The parts that this text makes certain."""
        if self.is_call is None:
            self._held += text
            return self._decide()
        if not self.is_call:
            return []
        if self.rest is not None:
            self.rest += text
            return []
        arguments = self._read(text)
        return [MoreArguments(arguments)] if arguments else []

    def _decide(self) -> list[CallPart]:
        if head := _HEAD.match(self._held):
            name = _json(head[1])
            self.is_call = isinstance(name, str) and name in self._names
            return [ToolCall(name, self._read(self._held[head.end() :]))] if self.is_call else []
        begin = _BEGIN.match(self._held)
        if begin is None or (begin[1] and _json(begin[1]) not in _KEYS):
            self.is_call = False
            return []
        try:
            value, end = json.JSONDecoder().raw_decode(self._held.lstrip())
        except (ValueError, RecursionError):
            return []  # the object is not complete yet, or never will be
        call = _whole(value, self._names)
        self.is_call = call is not None
        self.rest = self._held.lstrip()[end:]
        return [call] if call else []

    def _read(self, text: str) -> str:
        """The beginning of `text` that belongs to the arguments."""
        end = len(text) if self._in_arguments else 0
        for place, char in enumerate(text):
            if self._in_string:
                if self._escaped or char == "\\":
                    self._escaped = not self._escaped
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == self._outside and self._in_arguments:
                    self._in_arguments, end = False, place + 1
                if self._depth == 0:
                    self.rest = text[place + 1 :]
                    break
        return text[:end]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _whole(value: Any, names: Collection[str]) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    if not isinstance(name, str) or name not in names:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):  # some models encode them twice
        arguments = _json(arguments or "{}")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))
