"""The fields that chat and text completions share, and what they mean for the engine."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from multilora_gateway.backend.served_model import BaseModel
from multilora_gateway.errors import GatewayError, invalid
from multilora_gateway.generation.adapter_selection import AdapterFields
from multilora_gateway.generation.grammar import with_object_types
from multilora_gateway.http.json_values import Fields, Items, OpenFields
from multilora_gateway.openai.vllm import VllmFields
from multilora_gateway.settings import Settings

MAX_CHOICES = 128  # OpenAI's limit of n
_LORAX_EOS = AliasChoices("ignore_eos", "ignore_eos_token")
_UINT64 = 2**64
_SAME_NAMES = (
    "min_tokens", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "ignore_eos", "stop_token_ids",
)  # fmt: skip

_Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(OpenFields):
    include_usage: bool | None = None


class ResponseFormat(Fields):
    """OpenAI's formats, and TGI's, whose schema or pattern is `value`."""

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    json_schema: dict[str, Any] | None = None
    value: Any = None

    def grammar(self) -> dict[str, Any] | None:
        """The engine's `grammar`; GatewayError when the schema is missing."""
        if self.type == "text":
            return None
        if self.type == "regex":
            if not isinstance(self.value, str):
                raise invalid("response_format.value must be a pattern", "response_format")
            return {"type": "regex", "value": self.value}
        schema = self.value
        if self.json_schema is not None:
            schema = self.json_schema.get("schema", {})
        elif self.type == "json_schema" and isinstance(schema, dict):
            schema = schema.get("schema", schema)  # TGI's may have a name around it
        if schema is None and self.type == "json_object":
            return {"type": "json_object"}
        if not isinstance(schema, dict):
            raise invalid(
                'response_format needs a schema: {"type": "json_schema", "json_schema": '
                '{"name": "answer", "schema": {…}}}',
                "response_format",
            )
        if not schema:
            return {"type": "json_object"}
        return {"type": "json", "value": with_object_types(schema)}


class Common(AdapterFields, VllmFields, Fields):
    """What both kinds of completion take. None is as good as left out."""

    model: str | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: Annotated[bool | None, Field(validation_alias=_LORAX_EOS)] = None
    logit_bias: dict[str, Any] | None = None  # see _logit_bias
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    response_format: ResponseFormat | None = None
    seed: int | None = None
    stop: str | Items[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Taken without effect.
    metadata: Any = None
    moderation: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    user: Any = None

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, base: BaseModel, settings: Settings) -> dict[str, Any]:
        """By the engine's names, but for max_tokens, logprobs and seed; raises GatewayError."""
        values: dict[str, Any] = {
            name: value for name in _SAME_NAMES if (value := getattr(self, name)) is not None
        }
        # OpenAI samples unless told otherwise; the engine alone would be greedy.
        values["temperature"] = 1.0 if self.temperature is None else self.temperature
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


def choices(sampling: Mapping[str, Any], n: int, seed: int | None) -> list[dict[str, Any]]:
    """The sampling of each of `n` choices: with a seed, each has its own."""
    if seed is None:
        return [dict(sampling)] * n
    return [{**sampling, "seed": (seed + number) % _UINT64} for number in range(n)]


def check_count(answers: int, base: BaseModel) -> None:
    """GatewayError for more answers than ever run at once: no retry would help."""
    most = base.max_concurrent_requests
    if answers > most:
        raise invalid(
            f"this asks for {answers} answers at once, but the server gives at most {most} "
            "(--max-concurrent-requests); send fewer prompts or a smaller n",
            "n",
        )


def room(prompt_tokens: int, asked: int | None, default: int | None, base: BaseModel) -> int:
    """max_tokens of a prompt of that length: as asked, else `default`, else all that is left."""
    left = base.max_total_tokens - prompt_tokens
    if prompt_tokens > base.max_input_tokens or left < 1:
        limit = min(base.max_input_tokens, base.max_total_tokens - 1)
        raise _too_long(f"the prompt has {prompt_tokens} tokens, more than {limit}; shorten it")
    if asked is None:
        return left if default is None else min(default, left)
    if asked > left:
        raise _too_long(
            f"the prompt's {prompt_tokens} tokens and max_tokens {asked} are more than "
            f"{base.max_total_tokens} together; ask for at most {left}"
        )
    return asked


def _too_long(message: str) -> GatewayError:
    return GatewayError(422, "validation", message, code="context_length_exceeded")


def _logit_bias(given: Mapping[str, Any], vocab_size: int) -> dict[str, float]:
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise invalid(
                f"logit_bias: {key[:20]!r} is no token id below {vocab_size}", "logit_bias"
            )
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise invalid(f"logit_bias: {key} must have a number from -100 to 100", "logit_bias")
    return dict(given)
