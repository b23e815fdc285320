"""Chats whose last message is to be continued: the prompt ends with that message's text.

As in transformers, a mark at the end of the text shows where a template has put it, and is cut off
with all that follows. A template may trim texts, but must show this one as it stands.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from multilora_text.errors import TextError

_MARK = "THE_TEXT_GOES_ON_HERE"
_MARK_AFTER = f"{_MARK} "  # whether its space is left tells whether the template has trimmed


def marked(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages to render; TextError when the last one has no text, or does not end in it."""
    *others, last = messages
    if not isinstance(text := last.get("content"), str):
        raise TextError("the last message has no content to continue; add it, or a message")
    if last.get("tool_calls"):
        raise TextError("the last message goes on in tool_calls; leave them out, or add a message")
    return [*others, {**last, "content": text + _MARK_AFTER}]


def unmarked(rendered: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt, given what `marked(messages)` was rendered to; TextError when the text of the
    last message is not there."""
    end = rendered.rfind(_MARK)
    if end < 0 or messages[-1]["content"].strip() not in rendered:
        raise TextError(
            "the chat template does not show the last message as it is, so it cannot be continued; "
            "send the whole prompt as a text"
        )
    prompt = rendered[:end]
    return prompt if rendered.startswith(_MARK_AFTER, end) else prompt.rstrip()
