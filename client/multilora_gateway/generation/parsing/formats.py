"""How families of models write tool calls and thoughts, by vLLM's names of parsers, and what tells
the family of a chat template."""

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from multilora_gateway.generation.parsing.reasoning import ReasoningTags
from multilora_gateway.generation.parsing.tool_calls import (
    HERMES_CLOSE,
    HERMES_OPEN,
    MISTRAL_CALLS,
    PYTHON_TAG,
    HermesParser,
    JsonParser,
    MistralParser,
    ToolParser,
)


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _short_id() -> str:
    """Mistral's templates refuse another length than 9, and other characters than letters and
    digits."""
    return uuid.uuid4().hex[:9]


@dataclass(frozen=True)
class ToolFormat:
    """How a model writes its calls. `arguments` is the key of the arguments in a call, `marks` are
    tokens that may begin or end one. Without a `parser` calls that nobody forces stay text."""

    arguments: str
    parser: Callable[[Collection[str]], ToolParser] | None
    marks: tuple[str, ...]
    new_id: Callable[[], str] = _call_id


@dataclass(frozen=True)
class ReasoningFormat:
    """How a model writes its thoughts. `always`: an answer begins with thoughts unless the prompt
    has ended them; else it does where the prompt, or the model, begins them."""

    tags: ReasoningTags
    always: bool = False


HERMES = ToolFormat("arguments", HermesParser, (HERMES_OPEN, HERMES_CLOSE))
LLAMA3 = ToolFormat("parameters", JsonParser, (PYTHON_TAG,))
MISTRAL = ToolFormat("arguments", MistralParser, (MISTRAL_CALLS, "[ARGS]", "[CALL_ID]"), _short_id)
_TOOLS = {"hermes": HERMES, "llama3_json": LLAMA3, "mistral": MISTRAL}
_THINK = ReasoningTags("<think>", "</think>")
_MISTRAL_THINK = ReasoningTags("[THINK]", "[/THINK]")
_REASONING = {
    "deepseek_r1": ReasoningFormat(_THINK, always=True),
    "qwen3": ReasoningFormat(_THINK),
    "mistral": ReasoningFormat(_MISTRAL_THINK),
}
_LLAMA3_MARKS = (PYTHON_TAG, '"parameters": dictionary of argument name')


def tool_format(setting: str, template: str) -> ToolFormat:
    """The format by `setting`, which is Settings.tool_call_parser, or by the marks in the source of
    the chat template."""
    if setting == "none":
        return replace(_tools_of(template), parser=None)
    return _TOOLS.get(setting) or _tools_of(template)


def reasoning_format(setting: str, template: str) -> ReasoningFormat | None:
    """The format by `setting`, which is Settings.reasoning_parser, or by the tags in the source of
    the chat template; None without any."""
    if setting in _REASONING:
        return _REASONING[setting]
    if setting == "none":
        return None
    by_tag = {each.tags.close: each for each in _REASONING.values() if not each.always}
    return next((each for tag, each in by_tag.items() if tag in template), None)


def _tools_of(template: str) -> ToolFormat:
    if HERMES_OPEN in template:
        return HERMES
    if MISTRAL_CALLS in template:
        return MISTRAL
    return LLAMA3 if any(mark in template for mark in _LLAMA3_MARKS) else HERMES
