"""Clients as people install them, each in a streamed conversation with an adapter, with a call of a
tool or an answer by a schema where the client has such a thing."""

import asyncio
import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import jsonschema
import pytest
from huggingface_hub import InferenceClient
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from support.e2e.openai import PEOPLE, PERSON, say

TURNS = (("hello world", "HELLO WORLD"), ("one two", "ONE TWO"))
SECONDS = 60
KEY = "none"
ASKED = PEOPLE[0]


class Weather(BaseModel):
    """The weather of today."""

    unit: Literal["C", "F"]


UNITS = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
FUNCTION: Any = {"name": "weather", "description": "The weather of today.", "parameters": UNITS}
TOOL: Any = {"type": "function", "function": FUNCTION}


@pytest.fixture(scope="module", autouse=True)
def quiet_clients() -> Iterator[None]:
    """Clients that would call home stay here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        patch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
        patch.setenv("LANGSMITH_TRACING", "false")
        yield


def conversation(answer: Any) -> None:
    """Two turns; `answer` maps messages to the pieces of the next one."""
    messages: list[Any] = []
    for prompt, want in TURNS:
        messages += say(prompt)
        pieces = [piece for piece in answer(messages) if piece]
        assert "".join(pieces) == want and len(pieces) > 1
        messages.append({"role": "assistant", "content": want})


def check_call(name: str, arguments: Iterable[str]) -> None:
    pieces = [piece for piece in arguments if piece]
    assert name == "weather" and len(pieces) > 1
    jsonschema.validate(json.loads("".join(pieces)), UNITS)


def test_openai_chats_and_completes(openai_client: OpenAI) -> None:
    def answer(messages: Any) -> Iterator[str]:
        chunks = openai_client.chat.completions.create(
            model="upper", messages=messages, temperature=0, stream=True
        )
        yield from (chunk.choices[0].delta.content or "" for chunk in chunks)

    conversation(answer)
    with openai_client.chat.completions.stream(
        model="upper", messages=say("hello"), tools=[TOOL], tool_choice="required"
    ) as stream:
        arguments = [
            event.arguments_delta
            for event in stream
            if event.type == "tool_calls.function.arguments.delta"
        ]
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    check_call(call.function.name, arguments)
    chunks = openai_client.completions.create(
        model="upper", prompt="hello world", temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == "HELLO WORLD"


def test_openai_responds(openai_client: OpenAI) -> None:
    def answer(messages: Any) -> Iterator[str]:
        with openai_client.responses.stream(
            model="upper", input=messages, temperature=0, instructions="Answer."
        ) as stream:
            for event in stream:
                if event.type == "response.output_text.delta":
                    yield event.delta
            last = stream.get_final_response()
        assert last.status == "completed" and last.usage
        assert last.usage.total_tokens == last.usage.input_tokens + last.usage.output_tokens

    conversation(answer)
    with openai_client.responses.stream(
        model="json", input=ASKED, temperature=0, text_format=Weather
    ) as stream:
        assert stream.get_final_response().output_parsed in (Weather(unit="C"), Weather(unit="F"))


def test_openai_calls_a_tool_in_a_response(openai_client: OpenAI) -> None:
    history: Any = [*say("hello world")]
    asked: Any = {"model": "upper", "temperature": 0, "tools": [{"type": "function", **FUNCTION}]}
    with openai_client.responses.stream(input=history, tool_choice="required", **asked) as stream:
        events = list(stream)
        response = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    (call,) = response.output
    assert call.type == "function_call"
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    check_call(call.name, deltas)
    history += [
        *response.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "20"},
        *say("one two"),
    ]
    assert openai_client.responses.create(input=history, **asked).output_text == "ONE TWO"


def test_text_generation(gateway: str) -> None:
    """It names no adapter, so the base answers, which repeats. Its chats are whole: of streamed
    ones it reads [DONE], with which TGI ends them, too, as JSON."""
    import text_generation
    from text_generation.types import Message

    client = text_generation.Client(gateway, timeout=SECONDS)
    pieces = client.generate_stream("hello world", max_new_tokens=40)
    texts = [piece.token.text for piece in pieces if not piece.token.special]
    assert "".join(texts) == "hello world" and len(texts) > 1
    said = [Message(role="user", content="hello world")]
    called: Any = client.chat(said, max_tokens=100, tools=[TOOL], tool_choice="weather")
    (call,) = called.choices[0].message.tool_calls
    jsonschema.validate(json.loads(call["function"]["arguments"]), UNITS)


def test_lorax(gateway: str) -> None:
    import lorax

    client = lorax.Client(gateway, timeout=SECONDS)
    pieces = client.generate_stream("hello world", adapter_id="upper", max_new_tokens=40)
    texts = [piece.token.text for piece in pieces if not piece.token.special]
    assert "".join(texts) == "HELLO WORLD" and len(texts) > 1
    form = {"type": "json_object", "schema": PERSON}
    person = client.generate_stream(
        ASKED, adapter_id="json", max_new_tokens=100, response_format=form  # pyright: ignore
    )  # fmt: skip
    text = "".join(piece.token.text for piece in person if not piece.token.special)
    jsonschema.validate(json.loads(text), PERSON)


def test_huggingface_hub(gateway: str) -> None:
    client = InferenceClient(base_url=gateway, api_key=KEY, timeout=SECONDS)

    def answer(messages: Any) -> Iterator[str]:
        chunks = client.chat_completion(messages, model="upper", temperature=0, stream=True)
        yield from (chunk.choices[0].delta.content or "" for chunk in chunks)

    conversation(answer)
    chunks = client.chat_completion(
        say("hello"), model="upper", tools=[TOOL], tool_choice="required", stream=True
    )
    calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    check_call(str(calls[0].function.name), [call.function.arguments for call in calls])


@pytest.mark.parametrize("responses", [False, True])
def test_langchain(gateway: str, responses: bool) -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    def model(name: str) -> ChatOpenAI:
        return ChatOpenAI(
            model=name, base_url=f"{gateway}/v1", api_key=SecretStr(KEY), temperature=0,
            use_responses_api=responses, timeout=SECONDS,
        )  # fmt: skip

    conversation(lambda messages: (chunk.text for chunk in model("upper").stream(messages)))
    bound = model("upper").bind_tools([TOOL], tool_choice="weather")
    chunks: list[Any] = list(bound.stream(say("hello")))
    parts = [part for chunk in chunks for part in chunk.tool_call_chunks]
    check_call(parts[0]["name"], [part["args"] for part in parts])
    typed = model("json").with_structured_output(Weather, method="json_schema")
    assert isinstance([*typed.stream(say(ASKED))][-1], Weather)


@pytest.mark.parametrize("route", ["openai", "openai/responses", "anthropic"])
def test_litellm(gateway: str, route: str) -> None:
    import litellm

    base = gateway if route == "anthropic" else f"{gateway}/v1"
    asked: Any = {"model": f"{route}/upper", "api_base": base, "api_key": KEY, "stream": True}

    def answer(messages: Any) -> Iterator[str]:
        chunks: Any = litellm.completion(messages=messages, temperature=0, max_tokens=40, **asked)
        yield from (chunk.choices[0].delta.content or "" for chunk in chunks)

    conversation(answer)
    chunks: Any = litellm.completion(
        messages=say("hello"), tools=[TOOL], tool_choice="required", max_tokens=100, **asked
    )
    calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    check_call(calls[0].function.name, [call.function.arguments for call in calls])


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor(openai_client: OpenAI, mode: str) -> None:
    import instructor

    client = instructor.from_openai(openai_client.copy(), mode=instructor.Mode[mode])
    *_, last = client.chat.completions.create_partial(
        model="json", messages=say(ASKED), response_model=Weather, temperature=0, max_retries=0
    )
    assert last.unit in ("C", "F")


def test_openai_agents(gateway: str) -> None:
    """The tool is called, its result goes back, and the next answer is the last."""
    import agents

    asked: list[str] = []

    @agents.function_tool
    def weather(unit: Literal["C", "F"]) -> str:
        asked.append(unit)
        return "20"

    async def run() -> tuple[list[str], Any]:
        async with AsyncOpenAI(base_url=f"{gateway}/v1", api_key=KEY) as client:
            agent = agents.Agent(
                name="weather", instructions="Answer.", tools=[weather],
                model=agents.OpenAIResponsesModel("upper", client),
                model_settings=agents.ModelSettings(tool_choice="required", temperature=0),
            )  # fmt: skip
            result = agents.Runner.run_streamed(agent, "hello world", max_turns=3)
            events = [event async for event in result.stream_events()]
        raw = [e.data for e in events if e.type == "raw_response_event"]
        return [e.delta for e in raw if e.type == "response.output_text.delta"], result

    pieces, result = asyncio.run(run())
    assert len(asked) == 1 and asked[0] in ("C", "F")
    assert "".join(pieces) == result.final_output and len(pieces) > 1


def test_anthropic(gateway: str) -> None:
    import anthropic

    client = anthropic.Anthropic(base_url=gateway, api_key=KEY, max_retries=0, timeout=SECONDS)
    asked: Any = {
        "model": "upper", "max_tokens": 100, "system": "Answer.",
        "extra_body": {"temperature": 0},
    }  # fmt: skip

    def answer(messages: Any) -> Iterator[str]:
        with client.messages.stream(messages=messages, **asked) as stream:
            yield from stream.text_stream
            last = stream.get_final_message()
        assert last.stop_reason == "end_turn"
        count = client.messages.count_tokens(model="upper", messages=messages, system="Answer.")
        assert last.usage.input_tokens == count.input_tokens > 0

    conversation(answer)
    tool: Any = {"name": "weather", "input_schema": UNITS}
    history: list[Any] = say("hello world")
    with client.messages.stream(
        messages=history, tools=[tool], tool_choice={"type": "any"}, **asked
    ) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        message = stream.get_final_message()
    (call,) = message.content
    assert call.type == "tool_use" and message.stop_reason == "tool_use"
    check_call(call.name, parts)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "20"}
    text = {"type": "text", "text": "one two"}
    history += [
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result, text]},
    ]
    (said,) = client.messages.create(messages=history, tools=[tool], **asked).content
    assert said.type == "text" and said.text == "ONE TWO"
    with pytest.raises(anthropic.NotFoundError, match="upperx"):
        client.messages.create(messages=say("x"), **{**asked, "model": "upperx"})
