"""Text ↔ token ids of the base model, and the source of its chat template.

Both are read from the files of an HF checkpoint. Nothing here needs torch or transformers.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from multilora_text.chat_template import (
    TEMPLATE_FILE,
    TOKENIZER_CONFIG,
    ChatTemplate,
    find_template,
    special_tokens,
)
from multilora_text.errors import TextError

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER_FILE, TOKENIZER_CONFIG, TEMPLATE_FILE)


class Tokenizer:
    """Immutable after construction, so threads may share one."""

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
        """Raises TextError when the folder holds no readable tokenizer.json."""
        return Tokenizer.from_files(read_tokenizer_files(folder), str(folder))

    @staticmethod
    def from_files(files: Mapping[str, str], where: str) -> "Tokenizer":
        """`files` are the texts of TOKENIZER_FILES; TextError names `where` they lie."""
        path = f"{where}/{TOKENIZER_FILE}"
        if TOKENIZER_FILE not in files:
            raise TextError(
                f"{path} does not exist; the base model needs a fast tokenizer: save one with "
                "transformers' AutoTokenizer.save_pretrained"
            )
        try:
            backend = tokenizers.Tokenizer.from_str(files[TOKENIZER_FILE])
        except Exception as error:
            raise TextError(f"{path} cannot be read ({error}); download it again") from None
        config = _object(files, TOKENIZER_CONFIG, where)
        special = special_tokens(config)
        try:
            template = find_template(files.get(TEMPLATE_FILE), config, special)
        except ValueError as error:
            raise TextError(
                f"the chat template in {where} is broken ({error}); fix or remove it"
            ) from None
        return Tokenizer(backend, template, special)

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, with the tokens that the tokenizer itself puts around it."""
        return self._ids(text, add_special_tokens=True)

    def spans(self, text: str, add_special_tokens: bool = True) -> list[tuple[int, int, int]]:
        """`text` as tokens: (id, first character, character after the last)."""
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        return [
            (token_id, *span) for token_id, span in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def to_json(self) -> str:
        """The text of a tokenizer.json for this tokenizer."""
        return self._backend.to_str()

    def token(self, token_id: int) -> str | None:
        """A token as it stands in the vocabulary, given its id."""
        return self._backend.id_to_token(token_id)

    def token_id(self, token: str) -> int | None:
        """The id of a token of the vocabulary, given as it stands there."""
        return self._backend.token_to_id(token)

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that `decode` skips: they steer the model and are not text."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The base model's own template."""
        return self._chat_template

    def template(self, own: ChatTemplate | None) -> ChatTemplate:
        """What renders a chat: the `own` template of an adapter, else the base model's. Raises
        TextError without any."""
        if (template := own or self._chat_template) is None:
            raise TextError(
                "the base model has no chat template; render the messages yourself and send them "
                "as text_input without chat"
            )
        return template

    def encode_rendered(self, text: str) -> list[int]:
        """The ids of a rendered chat, in which the template has written the special tokens."""
        return self._ids(text, add_special_tokens=False)

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        """encode_batch_fast lets other threads run, unlike `encode`, and computes no offsets."""
        batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return batch[0].ids


def read_tokenizer_files(folder: Path) -> dict[str, str]:
    """The texts of those TOKENIZER_FILES that the folder has; raises TextError."""
    texts: dict[str, str] = {}
    for name in TOKENIZER_FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            texts[name] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TextError(f"{path} cannot be read ({error}); download it again") from None
    return texts


def _object(files: Mapping[str, str], name: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(files.get(name, "{}"))
    except (ValueError, RecursionError) as error:
        raise TextError(f"{where}/{name} is not JSON ({error}); download it again") from None
    return value if isinstance(value, dict) else {}
