"""Fields that vLLM adds to the OpenAI API: constraints of the answer, and vLLM's own settings."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from multilora_api.sampling import MAX_LOGPROBS, Grammar
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import invalid
from multilora_gateway.generation.grammar import (
    json_grammar,
    json_object_grammar,
    regex_grammar,
)
from multilora_gateway.http.json_values import (
    Absent,
    False_,
    Fields,
    Items,
    Schema,
    True_,
    only,
)


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
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: True_ = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    use_beam_search: False_ = None
    logits_processors: Annotated[Any, only([])] = None
    logprob_token_ids: Absent = None
    repetition_detection: Absent = None
    thinking_token_budget: Annotated[Any, only(-1)] = None
    vllm_xargs: Annotated[Any, only({})] = None
    watermarking: False_ = None
    # Accepted: no other text would come of them.
    cache_salt: Any = None
    ec_transfer_params: Any = None
    guided_decoding_backend: Any = None
    kv_transfer_params: Any = None
    request_id: Any = None
    return_mm_kwargs: Any = None
    return_token_offsets: Any = None  # of vLLM's render routes only
    routed_experts_prompt_start: Any = None
    session_id: Any = None
    stream_interval: Any = None

    def truncated(self, ids: list[int], base: ServedModel, answer: int) -> list[int]:
        """The prompt's last token ids, or its first; `answer` tokens must find room after -1."""
        keep = self.truncate_prompt_tokens
        if keep is None:
            return ids
        if keep == -1:
            keep = min(base.max_input_tokens, base.max_total_tokens - answer)
        if keep < 1:
            raise invalid(
                "truncate_prompt_tokens leaves no prompt; send at least 1, or beside -1 a smaller "
                "max_tokens",
                "truncate_prompt_tokens",
            )
        return ids[:keep] if self.truncation_side == "right" else ids[-keep:]

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
