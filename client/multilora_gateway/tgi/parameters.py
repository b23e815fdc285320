"""What clients of TGI and LoRAX may send to generate: names, types, and TGI's checks.

Law: ranges are checked in TGI's order, with TGI's messages word for word.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from multilora_api.sampling import NUM_SEEDS
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import invalid
from multilora_gateway.generation.adapter_selection import AdapterFields
from multilora_gateway.generation.budget import TokenBudget
from multilora_gateway.generation.chat_messages import ChatMessage
from multilora_gateway.http.json_values import (
    Body,
    Fields,
    Items,
    OpenFields,
    Schema,
    Text,
)
from multilora_gateway.settings import Settings


class JsonGrammar(Fields):
    """A JSON schema, as an object or as the text of one."""

    type: Literal["json"]
    value: Schema | Text


class RegexGrammar(Fields):
    type: Literal["regex"]
    value: Text


class NamedSchema(Fields):
    """OpenAI's way of giving a schema."""

    schema_: Schema = Field(alias="schema")
    # Accepted without effect.
    name: Any = None
    description: Any = None
    strict: Any = None


class JsonSchemaGrammar(Fields):
    type: Literal["json_schema"]
    value: NamedSchema


TgiGrammar = Annotated[JsonGrammar | RegexGrammar | JsonSchemaGrammar, Field(discriminator="type")]


class LoraxResponseFormat(Fields):
    """JSON that fits the schema; without a schema, any JSON object."""

    type: Literal["json_object"]
    schema_: Schema | None = Field(default=None, alias="schema")


class Parameters(AdapterFields, Fields):
    """null is the same as absent everywhere."""

    best_of: int | None = None
    decoder_input_details: bool | None = None
    details: bool | None = None
    do_sample: bool | None = None
    frequency_penalty: float | None = None
    grammar: TgiGrammar | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float | None = None
    return_full_text: bool | None = None
    seed: int | None = None
    stop: Items[Text] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_n_tokens: int | None = None
    top_p: float | None = None
    truncate: int | None = None
    typical_p: float | None = None
    watermark: bool | None = None
    # LoRAX only, see LORAX_FIELDS
    apply_chat_template: bool | None = None
    ignore_eos_token: bool | None = None
    response_format: LoraxResponseFormat | None = None
    return_k_alternatives: int | None = None

    @classmethod
    def misplaced(cls, name: str) -> bool:
        return name in GenerateRequest.model_fields

    @property
    def sampling(self) -> bool:
        """Whether tokens are drawn; otherwise the most likely token is taken."""
        if self.temperature == 0:  # LoRAX's way of saying greedy
            return False
        chosen = (self.temperature, self.top_k, self.top_p, self.typical_p)
        return bool(self.do_sample) or any(value is not None for value in chosen)

    @property
    def wants_details(self) -> bool:
        return bool(self.details or self.decoder_input_details)

    @property
    def of_lorax(self) -> bool:
        """Whether LoRAX's client wrote this: that client sends all its names, also those that are
        null, and needs more in the answer than TGI's client does."""
        return not self.model_fields_set.isdisjoint(LORAX_FIELDS)


LORAX_FIELDS = frozenset(
    (
        "adapter_source",
        "api_token",
        "apply_chat_template",
        "ignore_eos_token",
        "merged_adapters",
        "response_format",
        "return_k_alternatives",
    )
)


class HubOptions(Fields):
    """What clients of the Hub's inference API say of its queue and cache; without effect."""

    dont_load_model: Any = None
    use_cache: Any = None
    use_gpu: Any = None
    wait_for_model: Any = None


class GenerateRequest(Body):
    """`stream` counts for POST / only: the other routes say in their name what they do. `model` is
    that of the OpenAI API, for requests whose parameters name no adapter."""

    inputs: Text
    parameters: Parameters | None = None
    stream: bool | None = None
    model: Text | None = None
    options: HubOptions | None = None

    @classmethod
    def misplaced(cls, name: str) -> bool:
        return name in Parameters.model_fields


class ChatTokenizeRequest(OpenFields):
    """A chat request, of which only what shapes the prompt is read."""

    messages: Items[ChatMessage]
    model: Text | None = None
    tools: Items[Schema] | None = None


def check_parameters(given: Parameters, settings: Settings, streaming: bool) -> None:
    """Raises GatewayError for the first parameter that TGI, or this server, does not support."""
    _check_support(given, streaming)
    _check_best_of(given, settings, streaming)
    _check_ranges(given)
    stop, top = given.stop or [], given.top_n_tokens
    if len(stop) > settings.max_stop_sequences:
        raise invalid(
            f"`stop` supports up to {settings.max_stop_sequences} stop sequences. "
            f"Given: {len(stop)}"
        )
    if not all(stop):
        raise invalid("`stop` must not hold an empty string")
    if top is not None and not 0 <= top <= settings.max_top_n_tokens:
        raise invalid(
            f"`top_n_tokens` must be >= 0 and <= {settings.max_top_n_tokens}. Given: {top}"
        )
    _check_lorax(given, settings)


def check_inputs(inputs: str, given: Parameters, base: ServedModel) -> None:
    """The checks that need the base model's limits but not the prompt's tokens."""
    if not inputs:
        raise invalid("`inputs` cannot be empty")
    most = base.max_concurrent_requests
    if (given.best_of or 1) > most:
        raise invalid(
            f"`best_of` must be <= {most}, for the server runs no more at once. "
            f"Given: {given.best_of}"
        )
    truncate = given.truncate
    if truncate is not None and not 0 < truncate <= base.max_input_tokens:
        raise invalid(
            f"`truncate` must be strictly positive and less than {base.max_input_tokens}. "
            f"Given: {truncate}"
        )


def max_new_tokens(given: Parameters, budget: TokenBudget) -> int:
    """How many tokens to generate; raises GatewayError when that number, or the prompt, is too
    large."""
    asked, base, length = given.max_new_tokens, budget.base, budget.prompt_tokens
    if asked is not None and asked > budget.left:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {base.max_total_tokens}. "
            f"Given: {length} `inputs` tokens and {asked} `max_new_tokens`"
        )
    if budget.prompt_is_too_long:
        raise invalid(
            f"`inputs` must have less than {base.max_input_tokens} tokens. Given: {length}"
        )
    return budget.granted(asked)


def _check_support(given: Parameters, streaming: bool) -> None:
    if given.watermark:
        raise invalid("`watermark` == true is not supported; leave it out")
    if given.decoder_input_details and streaming:
        raise invalid("`decoder_input_details` == true is not supported when streaming tokens")


def _check_best_of(given: Parameters, settings: Settings, streaming: bool) -> None:
    best_of = given.best_of
    if best_of is None:
        return
    if streaming and best_of != 1:
        raise invalid("`best_of` != 1 is not supported when streaming tokens")
    if not 0 < best_of <= settings.max_best_of:
        raise invalid(f"`best_of` must be > 0 and <= {settings.max_best_of}. Given: {best_of}")
    if best_of > 1 and not given.sampling:
        raise invalid("you must use sampling when `best_of` is > 1")
    if best_of > 1 and given.seed is not None:
        raise invalid("`seed` must not be set when `best_of` > 1")


def _check_ranges(given: Parameters) -> None:
    for name in ("temperature", "repetition_penalty", "top_k", "max_new_tokens"):
        value = getattr(given, name)
        greedy = name == "temperature" and value == 0 and given.of_lorax
        if value is not None and value <= 0 and not greedy:
            raise invalid(f"`{name}` must be strictly positive", name)
    for name in ("top_p", "typical_p"):
        value = getattr(given, name)
        if value is not None and not 0 < value < 1:
            raise invalid(f"`{name}` must be > 0.0 and < 1.0", name)
    penalty = given.frequency_penalty
    if penalty is not None and not -2 <= penalty <= 2:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    if given.seed is not None and not 0 <= given.seed < NUM_SEEDS:
        raise invalid("`seed` must be >= 0 and < 2**64")


def _check_lorax(given: Parameters, settings: Settings) -> None:
    given.selection.check()
    if given.grammar is not None and given.response_format is not None:
        raise invalid("you must specify at most one of `grammar` or `response_format`")
    alternatives = given.return_k_alternatives
    if alternatives is not None and not 0 < alternatives <= settings.max_top_n_tokens:
        raise invalid(
            f"`return_k_alternatives` must be > 0 and <= {settings.max_top_n_tokens}. "
            f"Given: {alternatives}"
        )
