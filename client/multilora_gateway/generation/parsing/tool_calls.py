"""Tool calls in the text of an answer, found while the text grows.

Laws: the parts put together do not depend on how the text is split. Text that may still become a
call is held back. Text that looks like a call but is none, or names no known tool, stays text.
"""

import re
from collections.abc import Collection
from typing import Literal, Protocol

from multilora_gateway.generation.parsing.call_reader import CallReader
from multilora_gateway.generation.parsing.parts import CallPart, PartList, ToolCall, before

HERMES_OPEN, HERMES_CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
MISTRAL_CALLS = "[TOOL_CALLS]"
_NAMED = re.compile(r"\s*([\w.-]{1,128})\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\]\s*)?(?=\{)")
# What may still become the above; no model writes more between a name and its arguments.
_BEGINS_NAMED = re.compile(r"\s*[\w.-]{0,128}\s*(?:\[[A-Z_]*\]?\s*\w{0,64}\s*){0,2}\Z")
_SEPARATORS = "; \t\r\n"

CallOrText = str | CallPart


class ToolParser(Protocol):
    """Parses the text of one answer."""

    def push(self, text: str) -> list[CallOrText]:
        """The parts that this text makes certain."""
        ...

    def finish(self) -> list[CallOrText]:
        """The rest, at the end of the answer."""
        ...


class HermesParser:
    """Reads <tool_call>{"name": …, "arguments": …}</tool_call>, as Hermes and Qwen write."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._parts = PartList()
        self._held = ""
        self._reader: CallReader | None = None
        self._raw = ""  # the text that the reader has read, with the tag

    def push(self, text: str) -> list[CallOrText]:
        self._held += text
        while self._step():
            pass
        return self._parts.take()

    def finish(self) -> list[CallOrText]:
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
        length, closed = before(self._held, HERMES_CLOSE)
        self._read(length)
        if not closed:
            return False
        if self._reader.in_string:
            self._read(len(HERMES_CLOSE))
        else:
            self._raw += HERMES_CLOSE
            self._held = self._held[len(HERMES_CLOSE) :]
            self._end_call()
        return True

    def _seek(self) -> bool:
        certain, opened = before(self._held, HERMES_OPEN)
        self._parts.text(self._held[:certain])
        self._held = self._held[certain:]
        if opened:
            self._reader, self._raw = CallReader(self._names), HERMES_OPEN
            self._held = self._held[len(HERMES_OPEN) :]
        return opened

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
        self._parts = PartList()
        self._held = ""  # includes what the reader has read, as long as that may be text
        self._reader: CallReader | None = None
        self._plain = False  # the rest of the answer is text

    def push(self, text: str) -> list[CallOrText]:
        self._held += text
        while text and not self._plain:
            text = self._step(text)
        if self._plain:
            self._parts.text(self._held)
            self._held = ""
        return self._parts.take()

    def finish(self) -> list[CallOrText]:
        self._parts.text(self._held)
        self._held = ""
        self._parts.end()
        return self._parts.take()

    def _step(self, text: str) -> str:
        """Reads `text`, the new end of `_held`; returns the text that may hold one more call."""
        if self._reader is None:
            text = self._held.lstrip(_SEPARATORS).removeprefix(PYTHON_TAG).lstrip()
            if not text.startswith("{"):
                self._plain = bool(text) and not PYTHON_TAG.startswith(text)
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


class MistralParser:
    """Reads what follows [TOOL_CALLS]: a list of {"name": …, "arguments": …}, or one call, which
    newer models write as name[ARGS]{…} or name{…}. From what is no call on, all is text."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._parts = PartList()
        self._held = ""
        self._raw = ""  # what was read of the text, as long as it may not be a call
        self._state: Literal["text", "calls", "list", "plain"] = "text"
        self._reader: CallReader | None = None

    def push(self, text: str) -> list[CallOrText]:
        self._held += text
        while self._step():
            pass
        return self._parts.take()

    def finish(self) -> list[CallOrText]:
        if self._reader is None or self._reader.is_call is None:
            self._parts.text(self._raw + self._held)
        self._raw = self._held = ""
        self._parts.end()
        return self._parts.take()

    def _step(self) -> bool:
        """Whether something was read, and so more may follow."""
        if self._reader is not None:
            return self._read(self._reader)
        if self._state == "plain":
            self._parts.text(self._raw + self._held)
            self._raw = self._held = ""
            return False
        return {"text": self._seek, "calls": self._begin, "list": self._item}[self._state]()

    def _seek(self) -> bool:
        certain, called = before(self._held, MISTRAL_CALLS)
        self._parts.text(self._held[:certain])
        self._held = self._held[certain:]
        if called:
            self._take(len(MISTRAL_CALLS), "calls")
        return called

    def _begin(self) -> bool:
        """Reads up to the arguments of the first call."""
        begin = self._held.lstrip()
        before = len(self._held) - len(begin)
        if begin.startswith("["):
            return self._take(before + 1, "list")
        if begin.startswith("{"):
            self._reader = CallReader(self._names)
            return self._take(before, "text")
        if named := _NAMED.match(self._held):
            if named[1] not in self._names:
                return self._take(0, "plain")
            self._parts.calls([ToolCall(named[1], "")])
            self._reader = CallReader(self._names, begun=True)
            self._take(named.end(), "text")
            self._raw = ""
            return True
        return False if _BEGINS_NAMED.match(self._held) else self._take(0, "plain")

    def _item(self) -> bool:
        """Reads up to the next object of a list."""
        self._held = self._held.lstrip(", \t\r\n")
        if not self._held:
            return False
        if self._held.startswith("{"):
            self._reader = CallReader(self._names)
            return True
        if not self._held.startswith("]"):
            return self._take(0, "plain")
        self._take(1, "text")
        if self._raw.startswith(MISTRAL_CALLS):  # nothing was called
            self._parts.text(self._raw)
        self._raw = ""
        return True

    def _read(self, reader: CallReader) -> bool:
        """Reads on in the arguments of a call, or in an object that may become one."""
        if not self._held:
            return False
        self._raw += self._held
        self._parts.calls(reader.push(self._held))
        self._held = ""
        if reader.is_call is None:
            return False
        if reader.is_call:
            self._raw, self._held = "", reader.rest or ""
        if not reader.is_call or reader.rest is not None:
            self._reader = None
            self._state = self._state if reader.is_call else "plain"
        return True

    def _take(self, length: int, state: Literal["text", "calls", "list", "plain"]) -> bool:
        self._raw += self._held[:length]
        self._held = self._held[length:]
        self._state = state
        return True
