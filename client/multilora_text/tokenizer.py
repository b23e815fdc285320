"""Text ↔ token ids of the base model, and what its files say about text.

Both are read from the files of an HF checkpoint. Nothing here needs torch or transformers.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from multilora_text.chat_template import NO_TEMPLATES, ChatTemplate, ChatTemplates
from multilora_text.checkpoint_text import TEXT_FILES, CheckpointText, merge_text
from multilora_text.errors import TextError

TOKENIZER_FILE = "tokenizer.json"
_NOTHING = CheckpointText()


class Tokenizer:
    """Immutable after construction, so threads may share one."""

    def __init__(self, backend: tokenizers.Tokenizer, text: CheckpointText = _NOTHING) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.text = text
        self.templates = ChatTemplates.of(text, text.special_tokens)

    @staticmethod
    def from_folder(folder: Path) -> "Tokenizer":
        """Raises TextError when the folder holds no readable tokenizer.json."""
        return Tokenizer.from_files(read_text_files(folder), str(folder))

    @staticmethod
    def from_files(files: Mapping[str, str], where: str) -> "Tokenizer":
        """`files` are the texts of tokenizer.json and of TEXT_FILES; TextError names `where` they
        lie."""
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
        return Tokenizer(backend, merge_text(files, where))

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

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that `decode` skips: they steer the model and are not text."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    def end_token_ids(self, text: CheckpointText) -> tuple[int, ...]:
        """The tokens that end an answer of a checkpoint whose files say `text`: the base model's
        own, or an adapter's."""
        end = self.token_id(text.special_tokens.get("eos_token", ""))
        more = [] if end is None or end in text.end_token_ids else [end]
        return (*text.end_token_ids, *more)

    def template(self, own: ChatTemplates = NO_TEMPLATES, tools: bool = False) -> ChatTemplate:
        """What renders a chat, with tools or without: one of an adapter's `own`, else one of the
        base model's. Raises TextError without any."""
        template = own.pick(tools) or self.templates.pick(tools)
        if template is None:
            raise TextError(
                "the base model has no chat template; render the messages yourself and send them "
                "as a text, without chat"
            )
        return template

    def encode_rendered(self, text: str) -> list[int]:
        """The ids of a rendered chat, in which the template has written the special tokens."""
        return self._ids(text, add_special_tokens=False)

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        """encode_batch_fast lets other threads run, unlike `encode`, and computes no offsets."""
        batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return batch[0].ids


def read_text_files(folder: Path) -> dict[str, str]:
    """The texts of tokenizer.json and of those TEXT_FILES that the folder has; raises TextError."""
    texts: dict[str, str] = {}
    for name in (TOKENIZER_FILE, *TEXT_FILES):
        path = folder / name
        if not path.is_file():
            continue
        try:
            texts[name] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TextError(f"{path} cannot be read ({error}); download it again") from None
    return texts
