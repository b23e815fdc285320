"""Text ↔ token ids of the base model, and its chat template.

Read from an HF checkpoint folder: `tokenizer.json` and the chat template. Nothing here needs torch
or transformers.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from multilora.chat_template import (
    TEMPLATE_FILE,
    TOKENIZER_CONFIG,
    ChatTemplate,
    find_template,
    special_tokens,
)
from multilora.errors import StartupError, invalid


class Tokenizer:
    """Immutable after construction, so any threads may use it at once."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        chat_template: ChatTemplate | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._chat_template = chat_template
        self.special_tokens = dict(special_tokens or {})

    @staticmethod
    def from_folder(folder: Path) -> "Tokenizer":
        """Raises StartupError when the folder holds no readable tokenizer.json."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise StartupError(
                f"{path} does not exist; the base model needs a fast tokenizer: save one with "
                "transformers' AutoTokenizer.save_pretrained"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise StartupError(f"{path} cannot be read ({error}); download it again") from None
        config = _read_json(folder / TOKENIZER_CONFIG)
        special = special_tokens(config)
        template = folder / TEMPLATE_FILE
        try:
            file = template.read_text(encoding="utf-8") if template.is_file() else None
            return Tokenizer(backend, find_template(file, config, special), special)
        except ValueError as error:
            raise StartupError(
                f"the chat template in {folder} is broken ({error}); fix or remove it"
            ) from None

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, with the tokens that the tokenizer itself puts around it."""
        return self._backend.encode(text).ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        """The id of a token of the vocabulary, given as it stands there."""
        return self._backend.token_to_id(token)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], template: ChatTemplate | None = None
    ) -> str:
        """The prompt text of a conversation that the assistant continues.

        `template` is an adapter's own, None for the base model's. Raises RequestError
        (INVALID_ARG) when there is none or it refuses the messages.
        """
        template = template or self._chat_template
        if template is None:
            raise invalid(
                "the base model has no chat template; render the messages yourself and send them "
                "as text_input without chat"
            )
        return template.render(messages)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], template: ChatTemplate | None = None
    ) -> list[int]:
        """The ids of `chat(…)`; the template writes its own special tokens."""
        return self._backend.encode(self.chat(messages, template), add_special_tokens=False).ids


def parse_messages(text: str) -> list[dict[str, Any]]:
    """Read a JSON list of {role, content} messages; raises RequestError (INVALID_ARG)."""
    remedy = 'send for example [{"role": "user", "content": "Hello"}]'
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(f"chat is set but text_input is not JSON ({error}); {remedy}") from None
    if not isinstance(messages, list) or not messages:
        raise invalid(f"chat is set but text_input is not a list of messages; {remedy}")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise invalid(f"chat: every message is an object with role and content; {remedy}")
        if not isinstance(message.get("content"), str):
            raise invalid(f"chat: the content of every message must be a string; {remedy}")
    return messages


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StartupError(f"{path} is not JSON ({error}); download it again") from None
