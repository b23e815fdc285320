"""Fields that vLLM adds to the OpenAI API: constraints of the answer, and vLLM's own settings."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from multilora_api.sampling import Grammar
from multilora_gateway.errors import invalid
from multilora_gateway.generation.grammar import (
    json_grammar,
    json_object_grammar,
    regex_grammar,
)
from multilora_gateway.http.json_values import Fields, Items, Schema


def only(value: Any) -> AfterValidator:
    """The validator of a setting that has one value here: `value`, or absent."""

    def check(given: Any) -> Any:
        if given is None or (given == value and isinstance(given, bool) == isinstance(value, bool)):
            return given
        if value is None:
            raise ValueError("not supported; leave it out")
        raise ValueError(f"only {json.dumps(value)} is supported; leave it out")

    return AfterValidator(check)


Absent = Annotated[Any, only(None)]
False_ = Annotated[Any, only(False)]
True_ = Annotated[Any, only(True)]


class StructuredOutputs(Fields):
    """A JSON schema or the text of one, a regular expression, some texts, or any JSON object."""

    json_: Schema | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Items[str] | None = None
    json_object: bool | None = None
    grammar: Absent = None
    structural_tag: Absent = None
    whitespace_pattern: Absent = None
    disable_additional_properties: False_ = None
    disable_any_whitespace: False_ = None
    disable_fallback: Any = None  # there is nothing to fall back to


class VllmFields(BaseModel):
    """Of both kinds of completion. None is the same as absent."""

    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | str | None = None
    guided_regex: str | None = None
    guided_choice: Items[str] | None = None
    stop_token_ids: Items[int] | None = None
    allowed_token_ids: Items[int] | None = None
    bad_words: Items[str] | None = None
    include_stop_str_in_output: bool | None = None
    guided_grammar: Absent = None
    guided_whitespace_pattern: Absent = None
    length_penalty: Annotated[Any, only(1.0)] = None
    priority: Annotated[Any, only(0)] = None
    prompt_logprobs: Absent = None
    return_token_ids: False_ = None
    return_tokens_as_token_ids: False_ = None
    skip_special_tokens: True_ = None
    spaces_between_special_tokens: True_ = None
    truncate_prompt_tokens: Absent = None
    use_beam_search: False_ = None
    # Accepted without effect.
    guided_decoding_backend: Any = None
    request_id: Any = None

    def constraint(self, other: dict[str, Any] | None) -> dict[str, Any] | None:
        """The engine's `grammar`: of these fields, or `other`, which response_format asks for.
        GatewayError for more than one."""
        outputs = self.structured_outputs or StructuredOutputs()
        found = [
            *([] if other is None else [other]),
            *_grammars(outputs.json_, outputs.regex, outputs.choice),
            *([json_object_grammar()] if outputs.json_object else []),
            *_grammars(self.guided_json, self.guided_regex, self.guided_choice),
        ]
        if len(found) > 1:
            raise invalid(
                "an answer has one constraint: send one of response_format, guided_json, "
                "guided_regex, guided_choice, or structured_outputs with one of json, regex, "
                "choice, json_object",
                "structured_outputs",
            )
        return found[0] if found else None


def _grammars(
    schema: dict[str, Any] | str | None, regex: str | None, choice: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    if schema is not None:
        yield json_grammar(schema)
    if regex is not None:
        yield regex_grammar(regex)
    if choice is not None:
        if not any(choice):
            raise invalid("choice holds no text; send at least one", "structured_outputs")
        yield regex_grammar(Grammar.of_choices(choice).text)
