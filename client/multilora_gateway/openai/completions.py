"""/v1/completions: the body, and the job it makes."""

import asyncio
from typing import Annotated, Any

from pydantic import Field

from multilora_gateway.backend.served_model import BaseModel
from multilora_gateway.errors import invalid
from multilora_gateway.generation.job import Answer, Call, Piece
from multilora_gateway.generation.model_name import resolve
from multilora_gateway.http.json_values import Items
from multilora_gateway.openai.job import Job, Place
from multilora_gateway.openai.logprobs import TextOffsets, text_logprobs
from multilora_gateway.openai.sampling import Common, check_count, choices, room
from multilora_gateway.openai.vllm import True_
from multilora_text.tokenizer import Tokenizer

MAX_LOGPROBS = 20
_DEFAULT_TOKENS = 16  # OpenAI's
_LONG = 8192  # characters; longer prompts are tokenised beside the event loop

Prompt = str | list[int]


class CompletionBody(Common):
    prompt: str | Items[str] | Items[int] | Items[Items[int]]
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    suffix: str | None = None
    add_special_tokens: True_ = None

    def check(self) -> None:
        """What fits no engine; raises GatewayError."""
        if self.suffix:
            raise invalid("suffix is not supported; leave it out", "suffix")
        if self.best_of not in (None, self.n or 1):
            raise invalid("best_of must equal n here; leave it out", "best_of")
        if self.echo and self.logprobs is not None:
            raise invalid("echo with logprobs is not supported; leave one of them out", "echo")


async def completion_job(body: CompletionBody, place: Place) -> Job:
    """Raises GatewayError."""
    base = await place.backend.base()
    body.check()
    sampling = body.sampling(base, place.settings)
    if body.logprobs is not None:
        sampling["logprobs"] = body.logprobs
    prompts, n = _prompts(body.prompt), body.n or 1
    check_count(len(prompts) * n, base)
    target = await resolve(place.backend, place.settings, place.caller, body.model, body.wish)
    encoded = [await _encode(prompt, base) for prompt in prompts]
    calls: list[Call] = []
    for ids in encoded:
        most = room(len(ids), body.max_tokens, _DEFAULT_TOKENS, base)
        calls += [
            Call(ids, target.adapter_id, each, adapter_token=body.wish.token)
            for each in choices({**sampling, "max_tokens": most}, n, body.seed)
        ]
    echoes = [_text(prompt, base.tokenizer) if body.echo else "" for prompt in prompts]
    wants_logprobs = body.logprobs is not None
    return Job(
        kind="cmpl",
        object="text_completion",
        chunk_object="text_completion",
        target=target,
        base=base,
        calls=calls,
        choice=lambda number: TextChoice(base.tokenizer, echoes[number // n], wants_logprobs),
        prompt_tokens=sum(map(len, encoded)),
        with_usage=body.with_usage,
    )


class TextChoice:
    """See Choice of openai_job. `echo` is put before the text."""

    def __init__(self, tokenizer: Tokenizer, echo: str, logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._echo = echo
        self._offsets = TextOffsets(tokenizer) if logprobs else None

    def opening(self) -> list[dict[str, Any]]:
        return [_chunk(self._echo, None)] if self._echo else []

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        if not (piece.text or piece.finish_reason or (self._offsets and piece.tokens)):
            return []
        return [_chunk(piece.text, self._logprobs(piece), piece.finish_reason)]

    def whole(self, answer: Answer) -> dict[str, Any]:
        return _chunk(self._echo + answer.text, self._logprobs(answer), answer.finish_reason)

    def _logprobs(self, part: Piece | Answer) -> dict[str, Any] | None:
        if self._offsets is None:
            return None
        return text_logprobs(part.tokens, self._tokenizer, self._offsets)


def _chunk(text: str, logprobs: dict[str, Any] | None, reason: str | None = None) -> dict[str, Any]:
    return {"text": text, "logprobs": logprobs, "finish_reason": reason}


def _prompts(given: str | list[str] | list[int] | list[list[int]]) -> list[Prompt]:
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [given]  # pyright: ignore[reportReturnType] - one prompt's token ids
    if not given:
        raise invalid("prompt is empty; send a text", "prompt")
    return list(given)  # pyright: ignore[reportReturnType] - texts, or lists of token ids


async def _encode(prompt: Prompt, base: BaseModel) -> list[int]:
    if isinstance(prompt, str):
        encode = base.tokenizer.encode
        ids = encode(prompt) if len(prompt) < _LONG else await asyncio.to_thread(encode, prompt)
    else:
        ids = prompt
    if not ids:
        raise invalid("prompt is empty; send a text", "prompt")
    for token_id in (min(ids), max(ids)):
        if not 0 <= token_id < base.vocab_size:
            raise invalid(
                f"prompt: {str(token_id)[:20]} is no token id; they are 0 to {base.vocab_size - 1}",
                "prompt",
            )
    return ids


def _text(prompt: Prompt, tokenizer: Tokenizer) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
