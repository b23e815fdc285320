"""/v1/completions: the body, its job, and the JSON of its choices."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from multilora_api.sampling import MAX_LOGPROBS
from multilora_gateway.backend.messages import Delta, token_of
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
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    suffix: Annotated[Any, only("")] = None
    add_special_tokens: bool | None = None
    prompt_embeds: Absent = None

    def check(self) -> None:
        """Raises GatewayError for fields that are not supported here."""
        if self.best_of not in (None, self.n or 1):
            raise invalid("best_of must equal n here; leave it out", "best_of")
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise invalid(
                "max_tokens 0 asks for nothing; ask for more, or send echo or prompt_logprobs",
                "max_tokens",
            )

    @property
    def echoed_logprobs(self) -> int | None:
        """How many likeliest tokens to report beside each token of an echoed prompt."""
        return self.logprobs if self.echo else None

    def reports(self) -> dict[str, int]:
        """What the engine is asked for of log probabilities, by its names."""
        of_prompt = [n for n in (self.echoed_logprobs, self.prompt_logprobs) if n is not None]
        asked = {"logprobs": self.logprobs, "prompt_logprobs": max(of_prompt, default=None)}
        return {name: most for name, most in asked.items() if most is not None}


async def completion_job(body: CompletionBody, context: RequestContext) -> CompletionJob:
    """Raises GatewayError."""
    base = await context.admitted()
    body.check()
    sampling = body.sampling(base, context.settings) | body.reports()
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
    echoes = [NO_ECHO] * len(prompts)
    if body.echo:
        echoes = [_echo(body, *each, base) for each in zip(prompts, encoded, strict=True)]

    def choice(number: int) -> TextChoice:
        echo, offsets = echoes[number // n], None
        if body.logprobs is not None:
            shown = body.skip_special_tokens is False
            offsets = TextOffsets(base.tokenizer, not shown, len(echo.text), echo.offsets)
        ids = bool(body.return_tokens_as_token_ids)
        return TextChoice(base.tokenizer, echo, offsets, ids)

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
        prompt_logprobs=body.prompt_logprobs,
    )


class Echo(NamedTuple):
    """A prompt before its answer. `logprobs` is how many likeliest tokens to report beside each of
    its tokens `ids`, which begin at `offsets` in the text; None: no log probabilities."""

    text: str = ""
    logprobs: int | None = None
    ids: Sequence[int] = ()
    offsets: Sequence[int] = ()


NO_ECHO = Echo()


def _echo(body: CompletionBody, prompt: Prompt, ids: Sequence[int], base: ServedModel) -> Echo:
    """Texts as they were sent, others as their tokens read."""
    tokenizer, logprobs = base.tokenizer, body.echoed_logprobs
    if isinstance(prompt, str) and body.truncate_prompt_tokens is None:
        if logprobs is None:
            return Echo(prompt)
        spans = tokenizer.spans(prompt, body.add_special_tokens is not False)
        return Echo(prompt, logprobs, ids, _begins(spans))
    offsets = [] if logprobs is None else [*map(TextOffsets(tokenizer).of, ids)]
    return Echo(tokenizer.decode(ids), logprobs, ids, offsets)


def _begins(spans: Sequence[tuple[int, int, int]]) -> list[int]:
    """Where tokens begin. What the tokenizer puts around a text stands for nothing in it, and
    begins where the token before it ends."""
    begins, end = list[int](), 0
    for _, start, stop in spans:
        begins.append(start if start < stop else end)
        end = max(end, stop)
    return begins


class TextChoice:
    """A Choice (see openai.job). `echo` is put before the text. Log probabilities need `offsets`,
    which are those of this choice alone."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        echo: Echo = NO_ECHO,
        offsets: TextOffsets | None = None,
        tokens_as_ids: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._tokens_as_ids = tokens_as_ids
        self._echo = echo
        self._offsets = offsets

    def opening(self) -> list[dict[str, Any]]:
        """An echo with log probabilities comes with them."""
        echo = self._echo
        return [_chunk(echo.text, None)] if echo.text and echo.logprobs is None else []

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        told = self._offsets and (delta.tokens or delta.prompt)
        if not (delta.text or delta.finish_reason or told):
            return []
        text = self._echo.text if delta.prompt and self._echo.logprobs is not None else ""
        return [_chunk(text + delta.text, self._logprobs(delta), delta.finish_reason)]

    def whole(self, result: GenerationResult) -> dict[str, Any]:
        text = self._echo.text + result.text
        return _chunk(text, self._logprobs(result), result.finish_reason)

    def _logprobs(self, part: Delta | GenerationResult) -> dict[str, Any] | None:
        if self._offsets is None:
            return None
        most, tokens = self._echo.logprobs, part.tokens
        if most is not None and part.prompt:
            told = zip(self._echo.ids, part.prompt, strict=True)
            tokens = (*(token_of(*each, most) for each in told), *tokens)
        return text_logprobs(tokens, self._tokenizer, self._offsets, self._tokens_as_ids)


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
    answer = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    return body.truncated(ids, base, answer)


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
