"""Schemas and tools over the OpenAI API: what must come back as JSON does."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from huggingface_hub import InferenceClient
from openai import OpenAI

from launcher.triton.server import TritonServer
from support.e2e.gateway import running_gateway
from support.e2e.openai import PEOPLE, PERSON, say

UNITS = {
    "type": "object",
    "properties": {"unit": {"$ref": "#/$defs/unit"}},
    "required": ["unit"],
    "additionalProperties": False,
    "$defs": {"unit": {"enum": ["C", "F"]}},
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": UNITS}}
    for name in ("weather", "climate")
]
NAMED: Any = {"type": "function", "function": {"name": "climate"}}
ALLOWED: Any = {
    "type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}
}  # fmt: skip


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("prompt", PEOPLE)
def test_json_schema_always_validates(
    openai_client: OpenAI, prompt: str, temperature: float
) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    asked: Any = {
        "model": "json", "messages": say(prompt), "temperature": temperature, "seed": 3,
        "response_format": form,
    }  # fmt: skip
    whole = openai_client.chat.completions.create(**asked).choices[0]
    assert whole.finish_reason == "stop"
    jsonschema.validate(json.loads(whole.message.content or ""), PERSON)
    chunks = openai_client.chat.completions.create(**asked, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == whole.message.content


def test_json_object_is_an_object(openai_client: OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model="json", messages=say(PEOPLE[0]), temperature=0,
        response_format={"type": "json_object"},
    )  # fmt: skip
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


@pytest.mark.parametrize("stream", [False, True])
def test_vllms_constraints(openai_client: OpenAI, base: str, stream: bool) -> None:
    choices = ["a (b)?", "Zürich\n🍕", "x|y"]
    for extra in ({"structured_outputs": {"choice": choices}}, {"guided_choice": choices}):
        asked: Any = {
            "model": base, "prompt": "hello world", "temperature": 5.0, "seed": 1,
            "max_tokens": 50, "stream": stream, "extra_body": extra,
        }  # fmt: skip
        answer: Any = openai_client.completions.create(**asked)
        parts = [part.choices[0] for part in (answer if stream else [answer])]
        assert "".join(part.text for part in parts) in choices
        assert parts[-1].finish_reason == "stop"


@pytest.mark.parametrize("schema", [PERSON, json.dumps(PERSON)])
def test_vllms_schema(openai_client: OpenAI, schema: Any) -> None:
    answer = openai_client.chat.completions.create(
        model="json", messages=say(PEOPLE[0]), temperature=1.0, seed=3,
        extra_body={"structured_outputs": {"json": schema}, "skip_special_tokens": True},
    )  # fmt: skip
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), PERSON)


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", ("weather", "climate")), (NAMED, ("climate",)), (ALLOWED, ("climate",))],
)
def test_a_forced_tool_is_called(openai_client: OpenAI, base: str, choice: Any, names: Any) -> None:
    asked: Any = {
        "model": base, "messages": say("what is the weather?"), "temperature": 0, "tools": TOOLS,
        "tool_choice": choice,
    }  # fmt: skip
    whole = openai_client.chat.completions.create(**asked).choices[0]
    assert whole.finish_reason == "tool_calls" and whole.message.content is None
    (call,) = whole.message.tool_calls or []
    assert call.type == "function" and call.function.name in names
    jsonschema.validate(json.loads(call.function.arguments), UNITS)
    chunks = openai_client.chat.completions.create(**asked, stream=True)
    deltas = [delta for c in chunks for delta in c.choices[0].delta.tool_calls or []]
    assert {delta.index for delta in deltas} == {0}
    assert len(deltas) > 2  # as it is written
    functions = [delta.function for delta in deltas if delta.function]
    assert "".join(function.name or "" for function in functions) == call.function.name
    arguments = "".join(function.arguments or "" for function in functions)
    assert arguments == call.function.arguments


def test_a_call_that_is_cut_off_is_still_a_call(openai_client: OpenAI, base: str) -> None:
    answer = openai_client.chat.completions.create(
        model=base, messages=say("what is the weather?"), temperature=0, tools=TOOLS,
        tool_choice=NAMED, max_tokens=40,
    )  # fmt: skip
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls or []
    assert choice.finish_reason == "length" and choice.message.content is None
    assert call.type == "function" and call.function.name == "climate"
    assert call.function.arguments.startswith("{")


def test_tools_that_may_be_called_leave_text_alone(openai_client: OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model="upper", messages=say("hello world"), temperature=0, tools=TOOLS
    )
    assert answer.choices[0].message.content == "HELLO WORLD"
    assert answer.choices[0].message.tool_calls is None


@pytest.fixture(scope="module")
def thinker(server: TritonServer) -> Iterator[OpenAI]:
    """A client of a gateway that reads answers as those of a Mistral that thinks."""
    flags = "--reasoning-parser=deepseek_r1", "--tool-call-parser=mistral"
    with (
        running_gateway(server, *flags) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_stand_beside_the_content(thinker: OpenAI, base: str, stream: bool) -> None:
    """The base model says what it is told."""
    answer: Any = thinker.chat.completions.create(
        model=base, messages=say("one</think>two"), temperature=0, stream=stream
    )
    choices = [each.choices[0] for each in (answer if stream else [answer])]
    said = [each.delta if stream else each.message for each in choices]
    assert "".join(getattr(each, "reasoning_content", None) or "" for each in said) == "one"
    assert "".join(each.content or "" for each in said) == "two"


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_as_mistral_writes_it(thinker: OpenAI, base: str, stream: bool) -> None:
    """A constraint binds what follows the thoughts."""
    answer: Any = thinker.chat.completions.create(
        model=base, messages=say("one</think>two"), tools=TOOLS, stream=stream, temperature=0,
        extra_body={"guided_choice": ['[TOOL_CALLS]climate[ARGS]{"unit": "C"}']},
    )  # fmt: skip
    choices = [each.choices[0] for each in (answer if stream else [answer])]
    parts = [each.delta if stream else each.message for each in choices]
    calls = [call for part in parts for call in part.tool_calls or []]
    assert len(calls[0].id) == 9 and calls[0].function.name == "climate"
    assert "".join(call.function.arguments or "" for call in calls) == '{"unit": "C"}'
    assert "".join(getattr(each, "reasoning_content", None) or "" for each in parts) == "one"
    assert not any(part.content for part in parts)
    assert choices[-1].finish_reason == "tool_calls"


def test_a_tools_result_can_be_sent_back(openai_client: OpenAI, base: str) -> None:
    function = {"name": "weather", "arguments": '{"unit": "C"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    history: Any = [
        *say("hello"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "20"},
        *say([{"type": "text", "text": "good"}, {"type": "text", "text": "bye"}]),
    ]
    answer = openai_client.chat.completions.create(model=base, messages=history, max_tokens=5)
    assert answer.choices[0].message.content is not None


def test_huggingface_hub_asks_for_a_schema(gateway: str) -> None:
    hub = InferenceClient(base_url=gateway, timeout=60)
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    answer = hub.chat_completion(
        messages=say(PEOPLE[0]), model="json", temperature=0, response_format=form
    )
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), PERSON)
