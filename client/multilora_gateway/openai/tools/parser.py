"""Tool calls in the text of an answer, found while the text grows.

Laws: the parts put together do not depend on how the text is split. Text that may still become a
call is held back. Text that looks like a call but is none, or names no known tool, stays text.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from multilora_gateway.openai.tools.call_reader import CallPart, CallReader

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_PYTHON_TAG = "<|python_tag|>"
_SEPARATORS = "; \t\r\n"

Part = str | CallPart


class ToolParser(Protocol):
    """Parses the text of one answer."""

    def push(self, text: str) -> list[Part]:
        """The parts that this text makes certain."""
        ...

    def finish(self) -> list[Part]:
        """The rest, at the end of the answer."""
        ...


class _PartList:
    """The parts in order; white space around calls is dropped."""

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

    def calls(self, parts: list[CallPart]) -> None:
        if parts:
            self._space = ""
            self._called = True
            self._parts += parts

    def end(self) -> None:
        if self._space and not self._called:
            self._parts.append(self._space)
        self._space = ""

    def take(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts


class HermesParser:
    """Reads <tool_call>{"name": …, "arguments": …}</tool_call>, as Hermes and Qwen write."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._parts = _PartList()
        self._held = ""
        self._reader: CallReader | None = None
        self._raw = ""  # the text that the reader has read, with the tag

    def push(self, text: str) -> list[Part]:
        self._held += text
        while self._step():
            pass
        return self._parts.take()

    def finish(self) -> list[Part]:
        if self._reader is None:
            self._parts.text(self._held)
        else:  # the model may end without closing the tag
            self._read(len(self._held))
            self._end_call()
        self._held = ""
        self._parts.end()
        return self._parts.take()

    def _step(self) -> bool:
        """Reads up to the next tag; whether a tag was found, and so more may follow."""
        if self._reader is None:
            return self._seek()
        end = self._held.find(_CLOSE)
        if end < 0:
            self._read(len(self._held) - _overlap(self._held, _CLOSE))
            return False
        self._read(end)
        if self._reader.in_string:
            self._read(len(_CLOSE))
        else:
            self._raw += _CLOSE
            self._held = self._held[len(_CLOSE) :]
            self._end_call()
        return True

    def _seek(self) -> bool:
        start = self._held.find(_OPEN)
        certain = start if start >= 0 else len(self._held) - _overlap(self._held, _OPEN)
        self._parts.text(self._held[:certain])
        self._held = self._held[certain:]
        if start >= 0:
            self._reader, self._raw = CallReader(self._names), _OPEN
            self._held = self._held[len(_OPEN) :]
        return start >= 0

    def _read(self, length: int) -> None:
        assert self._reader is not None
        text, self._held = self._held[:length], self._held[length:]
        self._raw += text
        self._parts.calls(self._reader.push(text))

    def _end_call(self) -> None:
        if self._reader is not None and not self._reader.is_call:
            self._parts.text(self._raw)
        self._reader = None


class JsonParser:
    """Reads {"name": …, "parameters": …} as the whole answer, as Llama 3 and forced calls write.

    Several calls may follow each other, after semicolons or white space.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._parts = _PartList()
        self._held = ""  # includes what the reader has read, as long as that may be text
        self._reader: CallReader | None = None
        self._plain = False  # the rest of the answer is text

    def push(self, text: str) -> list[Part]:
        self._held += text
        while text and not self._plain:
            text = self._step(text)
        if self._plain:
            self._parts.text(self._held)
            self._held = ""
        return self._parts.take()

    def finish(self) -> list[Part]:
        self._parts.text(self._held)
        self._held = ""
        self._parts.end()
        return self._parts.take()

    def _step(self, text: str) -> str:
        """Reads `text`, the new end of `_held`; returns the text that may hold one more call."""
        if self._reader is None:
            text = self._held.lstrip(_SEPARATORS).removeprefix(_PYTHON_TAG).lstrip()
            if not text.startswith("{"):
                self._plain = bool(text) and not _PYTHON_TAG.startswith(text)
                return ""
            self._reader = CallReader(self._names)
        self._parts.calls(self._reader.push(text))
        if self._reader.is_call is None:
            return ""
        if not self._reader.is_call:
            self._plain = True
            return ""
        self._held = self._reader.rest or ""
        if self._reader.rest is not None:
            self._reader = None
        return self._held


def _overlap(text: str, tag: str) -> int:
    """The length of the longest end of `text` that is a beginning of `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


@dataclass(frozen=True)
class ToolFormat:
    """How a model writes its calls. `arguments` is the key of the arguments in a call."""

    arguments: str
    parser: Callable[[Collection[str]], ToolParser]


HERMES = ToolFormat("arguments", HermesParser)
LLAMA3 = ToolFormat("parameters", JsonParser)
_BY_NAME = {"hermes": HERMES, "llama3": LLAMA3}
_LLAMA3_MARKS = ("<|python_tag|>", '"parameters": dictionary of argument name')


def tool_format(setting: str, template: str) -> ToolFormat:
    """The format by `setting`, which is Settings.tool_call_parser, or by the marks in the source of
    the chat template."""
    if setting in _BY_NAME:
        return _BY_NAME[setting]
    if "<tool_call>" not in template and any(mark in template for mark in _LLAMA3_MARKS):
        return LLAMA3
    return HERMES
