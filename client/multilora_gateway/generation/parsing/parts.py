"""What an answer is made of: thoughts, text and tool calls, in pieces while the model writes."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from multilora_text.detokenizer import overlap


@dataclass(frozen=True)
class Reasoning:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """The beginning of a call. `arguments` is the beginning of the text of a JSON object; `id` is
    given by the AnswerParser."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True)
class MoreArguments:
    """More text of the arguments of the call that began last."""

    text: str


CallPart = ToolCall | MoreArguments
AnswerPart = str | Reasoning | CallPart  # a string is more of the answer's text


@dataclass(frozen=True)
class ParsedAnswer:
    """All parts of an answer together."""

    reasoning: str = ""
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    @staticmethod
    def joined(parts: Iterable[AnswerPart]) -> "ParsedAnswer":
        reasoning, text, calls = "", "", list[ToolCall]()
        for part in parts:
            if isinstance(part, Reasoning):
                reasoning += part.text
            elif isinstance(part, ToolCall):
                calls.append(part)
            elif isinstance(part, MoreArguments):
                calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + part.text)
            else:
                text += part
        return ParsedAnswer(reasoning, text, calls)


class PartList:
    """Text and calls in order; white space around calls is dropped."""

    def __init__(self) -> None:
        self._parts: list[str | CallPart] = []
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

    def take(self) -> list[str | CallPart]:
        parts, self._parts = self._parts, []
        return parts


def before(text: str, tag: str) -> tuple[int, bool]:
    """How many characters of `text`, which grows, certainly stand before `tag`; and whether the tag
    follows them."""
    if (start := text.find(tag)) >= 0:
        return start, True
    return len(text) - overlap(text, tag), False
