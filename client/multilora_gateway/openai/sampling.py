"""The fields that chat and text completions share → the engine's sampling parameters."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from multilora_api.sampling import MAX_LOGIT_BIAS, NUM_SEEDS, PARAMETERS
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import GatewayError, invalid
from multilora_gateway.generation.adapter_selection import AdapterFields
from multilora_gateway.generation.budget import TokenBudget
from multilora_gateway.generation.grammar import (
    json_grammar,
    json_object_grammar,
    regex_grammar,
    with_object_types,
)
from multilora_gateway.http.json_values import Body, Fields, Items, Schema
from multilora_gateway.openai.job import UsageInStream
from multilora_gateway.openai.vllm import VllmFields
from multilora_gateway.settings import Settings

MAX_CHOICES = 128  # OpenAI's limit of n
_LORAX_EOS = AliasChoices("ignore_eos", "ignore_eos_token")
_SAME_NAMES = (
    "min_tokens", "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "ignore_eos", "stop_token_ids",
    "allowed_token_ids", "bad_words", "include_stop_str_in_output",
    "skip_special_tokens",
)  # fmt: skip


def _within(name: str) -> Any:
    """The bounds of a sampling parameter, for pydantic."""
    allowed = PARAMETERS[name].range
    assert allowed is not None
    return Field(
        gt=allowed.low if allowed.excludes_low else None,
        ge=None if allowed.excludes_low else allowed.low,
        le=allowed.high if math.isfinite(allowed.high) else None,
    )


class StreamOptions(Fields):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Any = None  # accepted without effect


class JsonSchemaFormat(Fields):
    """A schema, and what does not bind an answer that the schema binds already."""

    schema_: Schema | None = Field(default=None, alias="schema")
    name: Any = None
    description: Any = None
    strict: Any = None


class ResponseFormat(Fields):
    """OpenAI's formats; TGI's, whose schema or pattern is `value`; LoRAX's, whose is `schema`."""

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    json_schema: JsonSchemaFormat | None = None
    value: Any = None
    schema_: Schema | None = Field(default=None, alias="schema")

    def grammar(self) -> dict[str, Any] | None:
        """The engine's `grammar`; GatewayError when the schema is missing."""
        if self.type == "text":
            return None
        if self.type == "regex":
            if not isinstance(self.value, str):
                raise invalid("response_format.value must be a pattern", "response_format")
            return regex_grammar(self.value)
        schema = self.schema_ if self.value is None else self.value
        if self.json_schema is not None:
            schema = self.json_schema.schema_ or {}
        elif self.type == "json_schema" and isinstance(schema, dict):
            schema = schema.get("schema", schema)  # TGI's schema may come with a name around it
        if schema is None and self.type == "json_object":
            return json_object_grammar()
        if not isinstance(schema, dict):
            raise invalid(
                'response_format needs a schema: {"type": "json_schema", "json_schema": '
                '{"name": "answer", "schema": {…}}}',
                "response_format",
            )
        if not schema:
            return json_object_grammar()
        return json_grammar(with_object_types(schema))


class CompletionFields(AdapterFields, VllmFields, Body):
    """The fields of both kinds of completion. None is the same as absent."""

    model: str | None = None
    frequency_penalty: Annotated[float, _within("frequency_penalty")] | None = None
    presence_penalty: Annotated[float, _within("presence_penalty")] | None = None
    repetition_penalty: Annotated[float, _within("repetition_penalty")] | None = None
    temperature: Annotated[float, _within("temperature")] | None = None
    top_p: Annotated[float, _within("top_p")] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, _within("min_p")] | None = None
    typical_p: Annotated[float, _within("typical_p")] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, _within("min_tokens")] | None = None
    ignore_eos: Annotated[bool | None, Field(validation_alias=_LORAX_EOS)] = None
    logit_bias: dict[str, Any] | None = None  # see _logit_bias
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    response_format: ResponseFormat | None = None
    seed: int | None = None
    stop: str | Items[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Accepted without effect.
    metadata: Any = None
    moderation: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    user: Any = None

    def usage_in_stream(self) -> UsageInStream:
        """Raises GatewayError for options of a stream that is none."""
        options = self.stream_options or StreamOptions()
        if options.model_fields_set and not self.stream:
            raise invalid("stream_options needs stream true; set it", "stream_options")
        if not options.include_usage:
            return "no chunk"
        return "every chunk" if options.continuous_usage_stats else "last chunk"

    def sampling(self, base: ServedModel, settings: Settings) -> dict[str, Any]:
        """By the engine's names, without max_tokens, seed and what tells of log probabilities;
        raises GatewayError."""
        if self.stream and self.prompt_logprobs is not None:
            raise invalid(
                "prompt_logprobs come in whole answers; leave out stream", "prompt_logprobs"
            )
        given = {name: value for name in _SAME_NAMES if (value := getattr(self, name)) is not None}
        # OpenAI samples by default; the engine's default is greedy.
        values: dict[str, Any] = {"temperature": 1.0, **base.sampling_defaults, **given}
        if stop := self._stop(settings.max_stop_sequences):
            values["stop"] = stop
        if self.logit_bias:
            values["logit_bias"] = _logit_bias(self.logit_bias, base.vocab_size)
        form = self.response_format.grammar() if self.response_format else None
        if grammar := self.constraint(form):
            values["grammar"] = grammar
        return values

    def _stop(self, limit: int) -> list[str]:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > limit:
            raise invalid(f"stop takes up to {limit} strings; got {len(stop)}", "stop")
        if not all(stop):
            raise invalid("stop holds an empty string; leave it out", "stop")
        return stop


def choice_seeds(seed: int | None, n: int) -> list[int | None]:
    """The seed of each of `n` choices: one seed for all would make all of them alike."""
    return [None if seed is None else (seed + number) % NUM_SEEDS for number in range(n)]


def check_count(answers: int, base: ServedModel) -> None:
    """GatewayError for more answers than ever run at once, which no retry could give."""
    most = base.max_concurrent_requests
    if answers > most:
        raise invalid(
            f"this asks for {answers} answers at once, but the server gives at most {most} "
            "(--max-concurrent-requests); send fewer prompts or a smaller n",
            "n",
        )


def max_tokens(budget: TokenBudget, asked: int | None, default: int | None = None) -> int:
    """As asked, else `default`, else all that is left; raises GatewayError when the prompt or what
    is asked for does not fit."""
    base, length = budget.base, budget.prompt_tokens
    if budget.prompt_is_too_long or budget.left < (asked != 0):
        limit = min(base.max_input_tokens, base.max_total_tokens - 1)
        raise _too_long(f"the prompt has {length} tokens, more than {limit}; shorten it")
    if asked is not None and asked > budget.left:
        raise _too_long(
            f"the prompt's {length} tokens and the {asked} asked for are more than "
            f"{base.max_total_tokens} together; ask for at most {budget.left}"
        )
    return budget.granted(asked, default)


def _too_long(message: str) -> GatewayError:
    return GatewayError(422, "validation", message, code="context_length_exceeded")


def _logit_bias(given: Mapping[str, Any], vocab_size: int) -> dict[str, float]:
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise invalid(
                f"logit_bias: {key[:20]!r} is no token id below {vocab_size}", "logit_bias"
            )
        if type(bias) not in (int, float) or not abs(bias) <= MAX_LOGIT_BIAS:
            raise invalid(f"logit_bias: {key} must have a number from -100 to 100", "logit_bias")
    return dict(given)
