"""The prompt of a Triton request in `text_input`: a text, or the messages of a chat as JSON."""

import json
from collections.abc import Iterable
from typing import Any

from multilora.errors import ErrorCode, RequestError, invalid
from multilora_text.errors import RenderingBusy, TextError
from multilora_text.messages import template_messages
from multilora_text.tokenizer import Tokenizer

LONGEST_TEXT = 1 << 22  # characters, beyond any prompt; the limit bounds a thread's time


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text; raises RequestError (INVALID_ARG)."""
    if not text:
        raise invalid("text_input is empty; send a prompt")
    _check_length(text)
    return tokenizer.encode(text)


def banned_tokens(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """The rows of token ids that the tokenizer makes of the words, with a space before them or not:
    in the middle of a text a word begins with one."""
    texts = [text for word in words for text in (word, f" {word.lstrip()}")]
    rows = (tuple(tokenizer.encode_rendered(text)) for text in texts)  # nothing around the words
    return tuple({row: None for row in rows if row})


def parse_messages(text: str) -> list[dict[str, Any]]:
    """A JSON list of messages, as a template takes them; raises RequestError (INVALID_ARG)."""
    _check_length(text)
    remedy = 'send for example [{"role": "user", "content": "Hello"}]'
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(f"chat is set but text_input is not JSON ({error}); {remedy}") from None
    if not isinstance(messages, list) or not messages:
        raise invalid(f"chat is set but text_input is not a list of messages; {remedy}")
    try:
        return template_messages(messages)
    except TextError as error:
        raise invalid(f"chat: {error}; {remedy}") from None


def _check_length(text: str) -> None:
    if len(text) > LONGEST_TEXT:
        raise invalid(
            f"text_input has {len(text)} characters, but at most {LONGEST_TEXT} are tokenized; "
            "shorten it, or send its token ids as input_ids"
        )


def chat_error(error: TextError) -> RequestError:
    """Why a chat has not become a prompt, as its request's own error."""
    code = ErrorCode.UNAVAILABLE if isinstance(error, RenderingBusy) else ErrorCode.INVALID_ARG
    return RequestError(code, str(error))
