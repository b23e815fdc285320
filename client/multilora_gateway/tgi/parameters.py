"""What clients of TGI and LoRAX may send to generate: names and types, nothing else.

Ranges are checked in tgi_validation, in TGI's order and words. Unknown names are refused: TGI
ignores them, which changes the answer silently.
"""

from typing import Annotated, Literal

from pydantic import Field

from multilora_gateway.generation.adapter_selection import AdapterFields
from multilora_gateway.generation.chat_messages import Message
from multilora_gateway.http.json_values import Fields, Items, OpenFields, Schema, Text


class JsonGrammar(Fields):
    """A JSON schema, as an object or as the text of one."""

    type: Literal["json"]
    value: Schema | Text


class RegexGrammar(Fields):
    type: Literal["regex"]
    value: Text


class NamedSchema(OpenFields):
    """OpenAI's way of giving a schema."""

    name: Text | None = None
    schema_: Schema = Field(alias="schema")


class JsonSchemaGrammar(Fields):
    type: Literal["json_schema"]
    value: NamedSchema


Grammar = Annotated[JsonGrammar | RegexGrammar | JsonSchemaGrammar, Field(discriminator="type")]


class ResponseFormat(Fields):
    """LoRAX: JSON that fits the schema; without one, any JSON object."""

    type: Literal["json_object"]
    schema_: Schema | None = Field(default=None, alias="schema")


class Parameters(AdapterFields, Fields):
    """null stands for absent everywhere."""

    best_of: int | None = None
    decoder_input_details: bool | None = None
    details: bool | None = None
    do_sample: bool | None = None
    frequency_penalty: float | None = None
    grammar: Grammar | None = None
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
    response_format: ResponseFormat | None = None
    return_k_alternatives: int | None = None

    @property
    def sampling(self) -> bool:
        """Whether tokens are drawn; otherwise the most likely one is taken."""
        if self.temperature == 0:  # LoRAX's way of saying greedy
            return False
        chosen = (self.temperature, self.top_k, self.top_p, self.typical_p)
        return bool(self.do_sample) or any(value is not None for value in chosen)

    @property
    def of_lorax(self) -> bool:
        """Whether LoRAX's client wrote this (it sends all its names, also those that are null);
        it needs more in the answer than TGI's."""
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


class GenerateRequest(Fields):
    """`stream` counts for POST / only: the other routes say it in their name."""

    inputs: Text
    parameters: Parameters | None = None
    stream: bool | None = None


class ChatTokenizeRequest(OpenFields):
    """A chat request, of which only what shapes the prompt is read."""

    messages: Items[Message]
    model: Text | None = None
    tools: Items[Schema] | None = None
