"""Log probabilities in the two shapes of the OpenAI API. `as_ids`: tokens are named by their ids,
as vLLM does it on demand, since several tokens may have one text."""

import codecs
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from multilora_gateway.backend.messages import Token
from multilora_text.tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_KEPT = 200_000  # about one vocabulary
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def chat_logprobs(
    tokens: Sequence[Token], tokenizer: Tokenizer, as_ids: bool = False
) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion, or of a part of it."""
    content = [
        {
            **_entry(token.id, token.logprob, tokenizer, as_ids),
            "top_logprobs": [_entry(*top, tokenizer, as_ids) for top in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


class TextOffsets:
    """Where the tokens of one answer begin in its text, in characters. Takes every token once.

    All tokens of one character begin where the character stands. Without `skip_special_tokens` the
    text shows special tokens, too. A text of `start` characters may come before the answer, with
    tokens of its own that begin at the places of `before`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        start: int = 0,
        before: Iterable[int] = (),
    ) -> None:
        self._start = start
        self._before = iter(before)
        self._tokenizer = tokenizer
        self._unseen = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoded: int | None = None  # characters; None before the first token of the text

    def of(self, token_id: int) -> int:
        """The offset of the next token."""
        for offset in self._before:
            return offset
        offset = self._decoded or 0
        if token_id not in self._unseen:
            self._decoded = offset + len(self._decoder.decode(self._seen(token_id)))
        return self._start + offset

    def _seen(self, token_id: int) -> bytes:
        """The token's bytes in the text; decoders drop a space before the first token."""
        raw = _bytes(self._tokenizer, token_id)
        if self._decoded is None and raw.startswith(b" "):
            return self._tokenizer.decode([token_id]).encode()
        return raw


def text_logprobs(
    tokens: Sequence[Token], tokenizer: Tokenizer, offsets: TextOffsets, as_ids: bool = False
) -> dict[str, Any]:
    """`choices[].logprobs` of a text completion, or of a part of it."""
    return {
        "tokens": [_name(tokenizer, token.id, as_ids) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            None if token.logprob is None else _top(token, tokenizer, as_ids) for token in tokens
        ],
        "text_offset": [offsets.of(token.id) for token in tokens],
    }


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    r"""The text of a token; part of a character is shown as its bytes, such as bytes:\xe2\x98."""
    raw = _bytes(tokenizer, token_id)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _name(tokenizer: Tokenizer, token_id: int, as_id: bool) -> str:
    return f"token_id:{token_id}" if as_id else token_text(tokenizer, token_id)


def _entry(
    token_id: int, logprob: float | None, tokenizer: Tokenizer, as_id: bool
) -> dict[str, Any]:
    return {
        "token": _name(tokenizer, token_id, as_id),
        "logprob": logprob,
        "bytes": list(_bytes(tokenizer, token_id)),
    }


def _top(token: Token, tokenizer: Tokenizer, as_ids: bool) -> dict[str, float | None]:
    return {
        _name(tokenizer, token_id, as_ids): logprob
        for token_id, logprob in (*token.top, (token.id, token.logprob))
    }


@lru_cache(maxsize=_KEPT)
def _bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """The bytes of a token. Decoders drop a space before the first token, so the token is decoded
    after itself."""
    first = tokenizer.decode([token_id], skip_special_tokens=False)
    text = tokenizer.decode([token_id, token_id], skip_special_tokens=False)[len(first) :]
    if _REPLACEMENT not in text:
        return text.encode()
    token = tokenizer.token(token_id) or text
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    alphabet = _byte_alphabet()
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return text.encode()


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes: a printable one stands for itself."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return alphabet | {chr(256 + number): byte for number, byte in enumerate(others)}
