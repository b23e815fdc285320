"""The text of a chat's answer as it grows → its parts: thoughts, text, tool calls.

Every API that answers chats makes an AnswerFormat of its request, and an AnswerParser of that for
each answer.

Laws: the parts put together do not depend on how the text is split. A forced call is the whole
answer. An answer that a grammar binds holds thoughts only where the prompt has begun them, and the
grammar binds what follows them.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from multilora_gateway.generation.parsing.formats import (
    ReasoningFormat,
    ToolFormat,
    reasoning_format,
    tool_format,
)
from multilora_gateway.generation.parsing.parts import AnswerPart, Reasoning, ToolCall
from multilora_gateway.generation.parsing.reasoning import (
    ReasoningParser,
    ReasoningTags,
    Thoughts,
)
from multilora_gateway.generation.parsing.tool_calls import JsonParser, ToolParser
from multilora_gateway.settings import Settings
from multilora_text.tokenizer import Tokenizer

_TAIL = 32  # tokens of a prompt among which a tag stands that ends it


@dataclass(frozen=True, kw_only=True)
class AnswerFormat:
    """How the answers to one request are written; filled by `answer_format`.

    `names` are those of the tools that may be called, `thoughts` what the text begins with.
    `one_call`: calls after the first are left out.
    """

    tools: ToolFormat
    reasoning: ReasoningFormat | None
    names: Collection[str] = ()
    forced: bool = False
    one_call: bool = False
    thoughts: Thoughts = "none"

    def shows_special_tokens(self, tokenizer: Tokenizer) -> bool:
        """Whether the engine must leave special tokens in the text, because marks are such."""
        marks: list[str] = []
        if self.names and not self.forced and self.tools.parser:
            marks += self.tools.marks
        if self.reasoning and self.thoughts != "none":
            marks += [self.reasoning.tags.open, self.reasoning.tags.close]
        return any(tokenizer.token_id(mark) in tokenizer.special_ids for mark in marks)

    def bound(self, grammar: dict[str, Any]) -> dict[str, Any]:
        """The engine's `grammar` that binds what follows the thoughts."""
        if self.reasoning is None or self.thoughts == "none":
            return grammar
        return {**grammar, "after": self.reasoning.tags.close}

    def tool_parser(self) -> ToolParser | None:
        parser = JsonParser if self.forced else self.tools.parser
        return parser(self.names) if parser and self.names else None

    def reasoning_parser(self) -> ReasoningParser | None:
        if self.reasoning is None or self.thoughts == "none":
            return None
        return ReasoningParser(self.reasoning.tags, self.thoughts)


def answer_format(
    settings: Settings,
    template: str,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    names: Collection[str] = (),
    forced: bool = False,
    bound: bool = False,
    one_call: bool = False,
    continued: str = "",
) -> AnswerFormat:
    """The format of the answers to `prompt`, made by the template whose source is `template`.
    `forced`: the answer is a call, to which a grammar binds it; `bound`: another grammar does.
    `continued` is the text of the message in whose middle the prompt ends."""
    reasoning = reasoning_format(settings.reasoning_parser, template)
    return AnswerFormat(
        tools=tool_format(settings.tool_call_parser, template),
        reasoning=reasoning,
        names=names,
        forced=forced,
        one_call=one_call,
        thoughts=_thoughts(reasoning, tokenizer, prompt, continued, forced or bound),
    )


def _thoughts(
    form: ReasoningFormat | None,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    continued: str,
    bound: bool,
) -> Thoughts:
    if form is None:
        return "none"
    end = tokenizer.decode(prompt[-_TAIL:], skip_special_tokens=False)
    thoughts = _continued(form.tags, continued) if continued.strip() else _opened(form, end)
    if bound and thoughts != "none":  # a grammar knows texts, and no special tokens
        is_text = tokenizer.token_id(form.tags.close) not in tokenizer.special_ids
        return thoughts if is_text and thoughts != "possible" else "none"
    return thoughts


def _opened(form: ReasoningFormat, prompt: str) -> Thoughts:
    """What a new answer begins with, given the end of its prompt."""
    prompt = prompt.rstrip()
    if prompt.endswith(form.tags.close):
        return "none"
    return "begun" if form.always or prompt.endswith(form.tags.open) else "possible"


def _continued(tags: ReasoningTags, message: str) -> Thoughts:
    """What the rest of a message begins with, given its text so far."""
    begin = message.rfind(tags.open)
    if begin < 0 or tags.close in message[begin:]:
        return "none"
    return "inside" if message[begin + len(tags.open) :].strip() else "begun"


class AnswerParser:
    """Parses the text of one answer."""

    def __init__(self, form: AnswerFormat) -> None:
        self._reasoning = form.reasoning_parser()
        self._tools = form.tool_parser()
        self._new_id = form.tools.new_id
        self._most_calls = 1 if form.one_call else math.inf
        self._calls = 0

    def push(self, text: str) -> list[AnswerPart]:
        """The parts that this text makes certain."""
        pieces = self._reasoning.push(text) if self._reasoning else [text]
        return self._kept(self._read(pieces))

    def finish(self) -> list[AnswerPart]:
        """The rest, at the end of the answer."""
        parts = self._read(self._reasoning.finish() if self._reasoning else [])
        return self._kept(parts + (self._tools.finish() if self._tools else []))

    def _read(self, pieces: Sequence[str | Reasoning]) -> list[AnswerPart]:
        parts: list[AnswerPart] = []
        for piece in pieces:
            if isinstance(piece, Reasoning):
                parts.append(piece)
            elif self._tools:
                parts += self._tools.push(piece)
            elif piece:
                parts.append(piece)
        return parts

    def _kept(self, parts: Sequence[AnswerPart]) -> list[AnswerPart]:
        """The parts that the request wants; calls have their ids."""
        kept: list[AnswerPart] = []
        for part in parts:
            if isinstance(part, ToolCall):
                self._calls += 1
                part = replace(part, id=self._new_id())
            if isinstance(part, str | Reasoning) or self._calls <= self._most_calls:
                kept.append(part)
        return kept
