"""Chat templates: the jinja programs of a checkpoint that turn messages into prompt text.

They are untrusted code, so nothing here compiles or runs them: that is the TemplateRenderer's work.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from multilora_text.checkpoint_text import CheckpointText


@dataclass(frozen=True)
class ChatTemplate:
    """`special_tokens` are names that the program may use: bos_token, …"""

    source: str
    special_tokens: Mapping[str, str]


@dataclass(frozen=True)
class ChatTemplates:
    """Those of one checkpoint. None: it has none for that."""

    default: ChatTemplate | None = None
    tool_use: ChatTemplate | None = None  # for chats with tools; else `default` renders these, too

    @staticmethod
    def of(text: CheckpointText, special_tokens: Mapping[str, str]) -> "ChatTemplates":
        """The templates of a folder whose files say `text`."""
        found = {name: ChatTemplate(code, special_tokens) for name, code in text.templates.items()}
        return ChatTemplates(found.get("default"), found.get("tool_use"))

    def __iter__(self) -> Iterator[ChatTemplate]:
        return iter(each for each in (self.default, self.tool_use) if each)

    def pick(self, tools: bool) -> ChatTemplate | None:
        """The template for a chat, with tools or without."""
        return (self.tool_use if tools else None) or self.default

    def as_json(self) -> dict[str, Any]:
        """For another process, whose `from_json` reads it."""
        sources = {"chat_template": self.default, "tool_use_template": self.tool_use}
        tokens = next((dict(each.special_tokens) for each in self), {})
        named = {name: each.source if each else None for name, each in sources.items()}
        return {**named, "special_tokens": tokens}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "ChatTemplates":
        default, tool_use = (
            ChatTemplate(values[name], values["special_tokens"]) if values[name] else None
            for name in ("chat_template", "tool_use_template")
        )
        return ChatTemplates(default, tool_use)


NO_TEMPLATES = ChatTemplates()
