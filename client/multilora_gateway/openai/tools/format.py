"""How a model writes its tool calls, told from its chat template or from the settings."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from multilora_gateway.openai.tools.parser import HermesParser, JsonParser, ToolParser


@dataclass(frozen=True)
class ToolFormat:
    """`arguments` is the key of the arguments in a call."""

    arguments: str
    parser: Callable[[Collection[str]], ToolParser]


HERMES = ToolFormat("arguments", HermesParser)
LLAMA3 = ToolFormat("parameters", JsonParser)
_BY_NAME = {"hermes": HERMES, "llama3": LLAMA3}
_LLAMA3_MARKS = ("<|python_tag|>", '"parameters": dictionary of argument name')


def tool_format(setting: str, template: str) -> ToolFormat:
    """`setting` is Settings.tool_call_parser, `template` the chat template's source."""
    if setting in _BY_NAME:
        return _BY_NAME[setting]
    if "<tool_call>" not in template and any(mark in template for mark in _LLAMA3_MARKS):
        return LLAMA3
    return HERMES
