"""Tokens as TGI shows them: those of an answer, and those of a text in /tokenize.

Laws of answers: the texts of all tokens that are not special, put together, are the generated text.
Unlike the engine's text, the generated text is not cut before a stop string. A token that ends in
half a character has the empty text; the token that completes the character brings the character.
The text continues the prompt, so the first space is shown also where a tokenizer writes spaces as
part of a word (Llama 2's).
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from multilora_gateway.backend.messages import Entries, Token, token_of
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import GatewayError
from multilora_gateway.generation.chat_messages import goes_on, template_messages
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.generation.prompt import render_chat
from multilora_gateway.tgi.parameters import ChatTokenizeRequest
from multilora_text.detokenizer import Detokenizer
from multilora_text.errors import TextError
from multilora_text.tokenizer import Tokenizer

_CONTEXT = 5  # as many tokens of the prompt as TGI looks at
_UNLIKELY = -9999.0  # JSON has no infinity


class TokenTexts:
    """The texts of one answer's tokens, which the caller pushes in order, naming the last one."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self.text = ""  # what was generated so far
        self.count = 0
        self.last_id: int | None = None
        self._tokenizer = tokenizer
        self._special = tokenizer.special_ids
        self._last = prompt_ids[-1] if prompt_ids else None
        self._before = self._last  # the token before the one pushed last
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
        """The rest of the text, for an answer without a last token to show it in."""
        delta = self._detokenizer.flush()
        self.text += delta
        return delta

    def top(self, token: Token, shown: dict[str, Any], count: int) -> list[dict[str, Any]]:
        """The JSON of the `count` likeliest tokens in the place of `token`, the token pushed last,
        whose own JSON is `shown`."""
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


def prefill_tokens(
    tokenizer: Tokenizer, prompt_ids: Sequence[int], prompt: Sequence[Entries]
) -> list[dict[str, Any]]:
    """The prompt's tokens, given what was said of each; none where nothing was."""
    told = zip(prompt_ids, prompt, strict=True) if prompt else ()
    return [
        {
            "id": token_id,
            "text": tokenizer.decode([token_id], skip_special_tokens=False),
            "logprob": token_of(token_id, entries, 0).logprob,
        }
        for token_id, entries in told
    ]


def text_tokens(base: ServedModel, text: str, special: bool = True) -> list[dict[str, Any]]:
    """The list of /tokenize. `start` and `stop` count characters; a token that the tokenizer puts
    around a prompt stands for none. `special`: with such tokens.
    """
    return [
        {"id": token_id, "text": text[start:stop], "start": start, "stop": stop}
        for token_id, start, stop in base.tokenizer.spans(text, special)
    ]


async def chat_tokens(
    request: ChatTokenizeRequest, adapter_id: str, context: RequestContext
) -> dict[str, Any]:
    """The object of /chat_tokenize; GatewayError when the template refuses the messages."""
    base = await context.backend.base()
    own = await context.backend.templates(adapter_id)
    messages = template_messages(request.messages)
    variables = {"tools": request.tools} if request.tools else {}
    continued = goes_on(messages)
    try:
        text = await render_chat(
            context.renderer, base.tokenizer, messages, own, continued, **variables
        )
    except TextError as error:
        raise GatewayError(422, "template_error", f"Template error: {error}") from None
    tokens = await asyncio.to_thread(text_tokens, base, text, False)
    return {"tokenize_response": tokens, "templated_text": text}


def _context(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> Sequence[int]:
    """The end of the prompt; nothing when the prompt ends inside a character."""
    tail = prompt_ids[-_CONTEXT:]
    return () if tokenizer.decode(tail).endswith("\N{REPLACEMENT CHARACTER}") else tail


def _json(token_id: int, text: str, logprob: float | None, special: bool) -> dict[str, Any]:
    shown = logprob if logprob is not None and math.isfinite(logprob) else _UNLIKELY
    return {"id": token_id, "text": text, "logprob": shown, "special": special}
