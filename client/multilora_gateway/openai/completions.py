"""/v1/completions: the body, its job, and the JSON of its choices."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from multilora_api.sampling import MAX_LOGPROBS
from multilora_gateway.backend.messages import Delta
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import invalid
from multilora_gateway.generation.budget import TokenBudget
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.generation.job import generation_requests
from multilora_gateway.generation.model_name import resolve
from multilora_gateway.generation.parallel import GenerationResult
from multilora_gateway.generation.prompt import encode_text
from multilora_gateway.http.json_values import Absent, Items, only
from multilora_gateway.openai.job import CompletionJob
from multilora_gateway.openai.logprobs import TextOffsets, text_logprobs
from multilora_gateway.openai.sampling import (
    CompletionFields,
    check_count,
    choice_seeds,
    max_tokens,
)
from multilora_text.tokenizer import Tokenizer

_DEFAULT_TOKENS = 16  # OpenAI's

Prompt = str | list[int]


class CompletionBody(CompletionFields):
    prompt: str | Items[str] | Items[int] | Items[Items[int]]
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    suffix: Annotated[Any, only("")] = None
    add_special_tokens: bool | None = None
    prompt_embeds: Absent = None

    def check(self) -> None:
        """Raises GatewayError for fields that are not supported here."""
        if self.best_of not in (None, self.n or 1):
            raise invalid("best_of must equal n here; leave it out", "best_of")
        if self.echo and self.logprobs is not None:
            raise invalid("echo with logprobs is not supported; leave one of them out", "echo")


async def completion_job(body: CompletionBody, context: RequestContext) -> CompletionJob:
    """Raises GatewayError."""
    base = await context.admitted()
    body.check()
    sampling = body.sampling(base, context.settings)
    if body.logprobs is not None:
        sampling["logprobs"] = body.logprobs
    prompts, n = prompts_of(body.prompt), body.n or 1
    check_count(len(prompts) * n, base)
    model = await resolve(context, body.model, body.selection)
    encoded = [await encode(body, prompt, base) for prompt in prompts]

    def limited(budget: TokenBudget) -> Mapping[str, Any]:
        return {**sampling, "max_tokens": max_tokens(budget, body.max_tokens, _DEFAULT_TOKENS)}

    requests = generation_requests(
        encoded,
        choice_seeds(body.seed, n),
        limited,
        base,
        adapter_id=model.adapter_id,
        adapter_token=body.selection.token,
    )
    echoes = [""] * len(prompts)
    if body.echo:
        whole = body.truncate_prompt_tokens is None
        echoes = [
            prompt if whole and isinstance(prompt, str) else base.tokenizer.decode(ids)
            for prompt, ids in zip(prompts, encoded, strict=True)
        ]

    def choice(number: int) -> TextChoice:
        offsets = None
        if body.logprobs is not None:
            offsets = TextOffsets(base.tokenizer, body.skip_special_tokens is not False)
        return TextChoice(base.tokenizer, echoes[number // n], offsets)

    return CompletionJob(
        context=context,
        base=base,
        requests=requests,
        id_prefix="cmpl",
        object="text_completion",
        chunk_object="text_completion",
        model=model,
        choice=choice,
        prompt_tokens=sum(map(len, encoded)),
        usage_in_stream=body.usage_in_stream(),
        token_ids="of choice" if body.return_token_ids else "nowhere",
    )


class TextChoice:
    """A Choice (see openai.job). `echo` is put before the text. Log probabilities need `offsets`,
    which are those of this choice alone."""

    def __init__(self, tokenizer: Tokenizer, echo: str, offsets: TextOffsets | None = None) -> None:
        self._tokenizer = tokenizer
        self._echo = echo
        self._offsets = offsets

    def opening(self) -> list[dict[str, Any]]:
        return [_chunk(self._echo, None)] if self._echo else []

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        if not (delta.text or delta.finish_reason or (self._offsets and delta.tokens)):
            return []
        return [_chunk(delta.text, self._logprobs(delta), delta.finish_reason)]

    def whole(self, result: GenerationResult) -> dict[str, Any]:
        return _chunk(self._echo + result.text, self._logprobs(result), result.finish_reason)

    def _logprobs(self, part: Delta | GenerationResult) -> dict[str, Any] | None:
        if self._offsets is None:
            return None
        return text_logprobs(part.tokens, self._tokenizer, self._offsets)


def _chunk(text: str, logprobs: dict[str, Any] | None, reason: str | None = None) -> dict[str, Any]:
    return {"text": text, "logprobs": logprobs, "finish_reason": reason}


def prompts_of(given: str | list[str] | list[int] | list[list[int]]) -> list[Prompt]:
    """One or several; GatewayError for none."""
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [given]  # pyright: ignore[reportReturnType] - one prompt's token ids
    if not given:
        raise invalid("prompt is empty; send a text", "prompt")
    return list(given)  # pyright: ignore[reportReturnType] - texts, or lists of token ids


async def encode(body: CompletionBody, prompt: Prompt, base: ServedModel) -> list[int]:
    """The token ids of one of the prompts; raises GatewayError."""
    if isinstance(prompt, str):
        ids = await encode_text(base.tokenizer, prompt, body.add_special_tokens is not False)
    else:
        ids = check_ids(prompt, base, "prompt")
    if not ids:
        raise invalid("prompt is empty; send a text", "prompt")
    return body.truncated(ids, base, body.max_tokens or _DEFAULT_TOKENS)


def check_ids(ids: list[int], base: ServedModel, param: str) -> list[int]:
    """The same ids; GatewayError when one is of no token."""
    for token_id in (min(ids), max(ids)) if ids else ():
        if not 0 <= token_id < base.vocab_size:
            raise invalid(
                f"{param}: {str(token_id)[:20]} is no token id; they are 0 to "
                f"{base.vocab_size - 1}",
                param,
            )
    return ids
