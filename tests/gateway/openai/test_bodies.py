"""Bodies of the OpenAI API: what is taken, what is refused, and in which words."""

import contextvars
import dataclasses
import json
from typing import Any

import pytest
from pydantic import ValidationError

from multilora_gateway.errors import GatewayError
from multilora_gateway.generation.chat_messages import template_messages
from multilora_gateway.http.unknown_fields import begin
from multilora_gateway.openai.bodies import parse
from multilora_gateway.openai.chat import ChatBody
from multilora_gateway.openai.completions import CompletionBody
from multilora_gateway.openai.sampling import choice_seeds
from multilora_gateway.settings import Settings
from multilora_gateway.tgi.parameters import ChatTokenizeRequest
from support.gateway.tgi import base_model

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> ChatBody:
    return parse(ChatBody, json.dumps({"messages": HELLO, **fields}).encode())


def refusal(raw: bytes) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        parse(ChatBody, raw)
    assert caught.value.status == 422
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temperature": "0.5"}, "temperature", "temperature: input should be a valid number"),
        ({"stop": [1]}, "stop", "stop"),
        ({"n": 0}, "n", "n: input should be greater than or equal to 1"),
        ({"messages": None}, "messages", "messages is missing; it is required"),
        ({"messages": ["hi"]}, "messages", "messages.0: input should be an object"),
        ({"response_format": {"type": "xml"}}, "response_format", "response_format.type: input"),
        ({"tool_choice": 5}, "tool_choice", "tool_choice: input should be 'auto'"),
        ({"tools": [{"function": {"name": "a b"}}]}, "tools", "tools.0.function.name: string"),
    ],
)
def test_a_refusal_names_the_field(fields: dict[str, Any], param: str, message: str) -> None:
    error = refusal(json.dumps({"messages": HELLO} | fields).encode())
    assert error.param == param
    assert error.message.startswith(message)


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"{", b"\xff", b"[]", b'"x"', b"null", b"{}", b'{"messages": "\\ud800"}'),
        b'{"messages":' + b"[" * 100_000,
        b'{"messages": [], "seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_body_is_refused(raw: bytes) -> None:
    assert len(refusal(raw).message) < 1000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temprature": 1}, "unknown field 'temprature'; did you mean temperature?"),
        ({"zzz": 1}, "unknown field 'zzz'; leave it out"),
        ({"stream_options": {"zzz": 1}}, "unknown field 'stream_options.zzz'; leave it out"),
    ],
)
def test_a_strict_server_guesses_what_was_meant(fields: dict[str, Any], message: str) -> None:
    def strictly() -> GatewayError:
        begin(strict=True)
        return refusal(json.dumps({"messages": HELLO} | fields).encode())

    assert contextvars.copy_context().run(strictly).message == message


def test_fields_without_effect_and_nulls_are_taken() -> None:
    without_effect = (
        "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "moderation", "verbosity", "cache_salt",
    )  # fmt: skip
    assert chat(**dict.fromkeys(without_effect, "x")).n is None
    nulls = {name: None for name in ChatBody.model_fields if name != "messages"}
    assert chat(**nulls) == chat()


def test_each_choice_has_a_seed_of_its_own() -> None:
    assert choice_seeds(2**64 - 2, 3) == [2**64 - 2, 2**64 - 1, 0]
    assert choice_seeds(None, 2) == [None, None]


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}},
            {"type": "json", "value": {"type": "array"}},
        ),
        (  # what huggingface_hub makes of it
            {"type": "json_object", "value": {"type": "array"}},
            {"type": "json", "value": {"type": "array"}},
        ),
        (  # LoRAX's
            {"type": "json_object", "schema": {"type": "array"}},
            {"type": "json", "value": {"type": "array"}},
        ),
        ({"type": "json_schema", "json_schema": {"schema": None}}, {"type": "json_object"}),
        ({"type": "regex", "value": "a+"}, {"type": "regex", "value": "a+"}),
        *(  # TGI's
            (given, {"type": "json", "value": {"type": "object", "properties": {}}})
            for given in (
                {"type": "json", "value": {"properties": {}}},
                {"type": "json_schema", "value": {"properties": {}}},
                {"type": "json_schema", "value": {"name": "x", "schema": {"properties": {}}}},
            )
        ),
    ],
)
def test_response_formats_become_grammars(given: Any, want: Any) -> None:
    form = chat(response_format=given).response_format
    assert form and form.grammar() == want


@pytest.mark.parametrize("given", [{"type": "json_schema"}, {"type": "regex", "value": 1}])
def test_a_response_format_without_its_schema_is_refused(given: Any) -> None:
    form = chat(response_format=given).response_format
    with pytest.raises(GatewayError, match="response_format"):
        assert form and form.grammar()


def test_messages_become_what_templates_expect() -> None:
    function = {"name": "add", "arguments": '{"a": 1}'}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "bob"},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": function}]},
        {"role": "tool", "content": "2", "tool_call_id": "call_1"},
    ]  # fmt: skip
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "add", "arguments": {"a": 1}},
    }
    assert template_messages(chat(messages=messages).messages) == [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "ab", "name": "bob"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "call_1"},
    ]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
        {"role": "user"},
        {"role": 1, "content": "x"},
        {"content": "x"},
        *(
            {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": odd}}]}
            for odd in ("[1", "[1]", "null", '{"a": "\\ud800"}', '{"a": NaN}')
        ),
    ],
)
def test_messages_that_no_template_can_show_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(GatewayError, match=r"messages\.0"):
        template_messages(chat(messages=[message]).messages)


def test_a_value_of_the_client_wins_over_the_bases_default() -> None:
    defaults = {"temperature": 0.6, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.2}
    base = dataclasses.replace(base_model(), sampling_defaults=defaults)
    assert chat().sampling(base, Settings()) == defaults
    given = {"temperature": 0.0, "top_k": -1, "top_p": 0.5, "repetition_penalty": 1.0}
    assert chat(**given).sampling(base, Settings()) == {**defaults, **given}
    assert chat(temperature=None).sampling(base, Settings()) == defaults
    assert chat().sampling(base_model(), Settings()) == {"temperature": 1.0}


@pytest.mark.parametrize("bias", ["1", True, None, 100.5, float("nan")])
def test_a_logit_bias_is_a_number(bias: Any) -> None:
    with pytest.raises(GatewayError, match="logit_bias: 5 must have a number from -100 to 100"):
        chat(logit_bias={"4": 1, "5": bias}).sampling(base_model(), Settings())


@pytest.mark.parametrize("prompt", ["hi", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_a_prompt_has_four_forms(prompt: Any) -> None:
    body = parse(CompletionBody, json.dumps({"prompt": prompt}).encode())
    assert body.prompt == prompt


_HALF = "half \ud800"


@pytest.mark.parametrize(
    "changes",
    [
        *({name: _HALF} for name in ("content", "name", "tool_call_id")),
        {"content": [{"type": "text", "text": _HALF}]},
        *({"tool_calls": [call]} for call in (
            {"function": {"name": _HALF}},
            {"function": {"name": "a", "arguments": _HALF}},
            {"function": {"name": "a", "arguments": {"a": [_HALF]}}},
            {"function": {"name": "a"}, "id": _HALF},
        )),
    ],
)  # fmt: skip
def test_half_a_character_is_refused_anywhere_in_a_message(changes: dict[str, Any]) -> None:
    message = {"role": "user", "content": "hello"} | changes
    with pytest.raises(ValidationError, match="not valid unicode"):
        ChatTokenizeRequest.model_validate({"messages": [message]})
