"""The tokens of one answer as TGI shows them: id, text, logprob, special.

Law: the texts of all tokens that are not special, put together, are the generated text. Unlike the
engine's text it is not cut before a stop string. A token that ends in half a character has the
empty text; the token that completes the character brings it. Text continues the prompt, so a
tokenizer that writes spaces as part of a word (Llama 2's) shows the first one.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from multilora_gateway.generation.job import Token
from multilora_text.detokenizer import Detokenizer
from multilora_text.tokenizer import Tokenizer

_CONTEXT = 5  # as many tokens of the prompt as TGI looks at
_UNLIKELY = -9999.0  # JSON has no infinity


class TokenTexts:
    """Give it every token of an answer, in order, and say which one is the last."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self.text = ""  # what was generated so far
        self.count = 0
        self.last_id: int | None = None
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._last = prompt_ids[-1] if prompt_ids else None
        self._before = self._last  # the one before the token pushed last
        self._detokenizer = Detokenizer(tokenizer)
        for token_id in _context(tokenizer, prompt_ids):
            self._detokenizer.push(token_id)

    def push(self, token: Token, last: bool) -> dict[str, Any]:
        """The JSON of a token."""
        delta = self._detokenizer.push(token.id)
        if last:
            delta += self._detokenizer.flush()
        self._before, self._last = self._last, token.id
        self.text += delta
        self.count += 1
        self.last_id = token.id
        special = token.id in self._special
        text = self._tokenizer.decode([token.id], skip_special_tokens=False) if special else delta
        return _json(token.id, text, token.logprob, special)

    def rest(self) -> str:
        """What is left of the text when there is no last token to show it in."""
        delta = self._detokenizer.flush()
        self.text += delta
        return delta

    def top(self, token: Token, shown: dict[str, Any], count: int) -> list[dict[str, Any]]:
        """The JSON of the `count` most likely tokens in the place of the one pushed last, which
        `push` has `shown` as."""
        return [
            shown if token_id == token.id else self._candidate(token_id, logprob)
            for token_id, logprob in token.top[:count]
        ]

    def _candidate(self, token_id: int, logprob: float) -> dict[str, Any]:
        special = token_id in self._special
        before = [] if self._before is None or special else [self._before]
        skipped = self._tokenizer.decode(before, skip_special_tokens=False)
        text = self._tokenizer.decode([*before, token_id], skip_special_tokens=False)
        return _json(token_id, text[len(skipped) :], logprob, special)


@lru_cache(maxsize=4)
def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokenizer.special_ids builds its set on every call."""
    return tokenizer.special_ids


def _context(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> Sequence[int]:
    """The end of the prompt; nothing when it cannot be told where its last character ends."""
    tail = prompt_ids[-_CONTEXT:]
    return () if tokenizer.decode(tail).endswith("\N{REPLACEMENT CHARACTER}") else tail


def _json(token_id: int, text: str, logprob: float | None, special: bool) -> dict[str, Any]:
    shown = logprob if logprob is not None and math.isfinite(logprob) else _UNLIKELY
    return {"id": token_id, "text": text, "logprob": shown, "special": special}
