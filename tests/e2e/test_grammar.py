"""Grammars over the whole server: answers always parse, and a bad one is its sender's alone."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from launcher.triton.server import TritonServer
from support.e2e.triton import generate, grpc_error, post, stream_events

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 999},
        "city": {"type": "string", "maxLength": 40},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
PROMPTS = (
    "Alice is 30 years old and lives in Paris.", "Bob Miller, 42, from Tokyo", "", "{{{[[[", "42",
    "My name is Zoe, I am 25 and I live in Berlin.", "nobody nowhere", "日本語 🎉", "a" * 200,
)  # fmt: skip


def person(kind: str = "json") -> str:
    value: dict[str, Any] = PERSON
    if kind == "json_schema":
        value = {"name": "person", "schema": PERSON}
    return json.dumps({"type": kind, "value": value})


def parameters(**values: Any) -> str:
    return json.dumps({"max_tokens": 200, **values})


def answer(server: TritonServer, body: dict[str, Any]) -> dict[str, Any]:
    status, reply = post(server, {"return_finish_reason": True, **body})
    assert status == 200, reply
    return reply


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5, 4.0])
def test_json_answers_always_validate(server: TritonServer, temperature: float) -> None:
    def ask(at: int) -> dict[str, Any]:
        wanted = parameters(
            grammar=json.loads(person(("json", "json_schema")[at % 2])),
            temperature=temperature,
            seed=at,
            typical_p=0.9 if at % 3 == 0 else 1.0,
        )
        adapter = "json" if at % 4 else ""
        prompt = PROMPTS[at % len(PROMPTS)] or "x"
        return answer(
            server, {"text_input": prompt, "adapter_id": adapter, "sampling_parameters": wanted}
        )

    with ThreadPoolExecutor(8) as pool:
        for reply in pool.map(ask, range(2 * len(PROMPTS))):
            assert reply["finish_reason"] == "stop", reply
            jsonschema.validate(json.loads(reply["text_output"]), PERSON)


def test_the_adapter_answers_as_it_does_without(server: TritonServer) -> None:
    for prompt in (PROMPTS[0], PROMPTS[1], PROMPTS[5]):
        free = generate(server, prompt, "json")
        assert generate(server, prompt, "json", grammar=person()) == free


def test_a_typed_grammar_over_a_stream(server: TritonServer) -> None:
    body = {"text_input": PROMPTS[1], "adapter_id": "json", "max_tokens": 99, "grammar": person()}
    pieces = [event["text_output"] for event in stream_events(server, body)]
    assert json.loads("".join(pieces))["city"] == "Tokyo" and len(pieces) > 1


def test_regex_and_json_object(server: TritonServer) -> None:
    number = json.dumps({"type": "regex", "value": r"\+[0-9]{2} [0-9]{3,5}"})
    text = generate(server, "call me", temperature=1.5, seed=3, grammar=number)
    assert re.fullmatch(r"\+[0-9]{2} [0-9]{3,5}", text)
    anything = json.dumps({"type": "json_object"})
    assert isinstance(json.loads(generate(server, PROMPTS[0], "json", grammar=anything)), dict)


def test_an_answer_cut_short_says_length(server: TritonServer) -> None:
    body = {"text_input": PROMPTS[0], "adapter_id": "json", "max_tokens": 5, "grammar": person()}
    reply = answer(server, body)
    assert reply["finish_reason"] == "length" and reply["text_output"].startswith('{"')


def test_a_bad_grammar_is_the_error_of_its_request_alone(server: TritonServer) -> None:
    good = {"text_input": "hello world", "adapter_id": "upper", "max_tokens": 200}
    bad = {**good, "grammar": json.dumps({"type": "json", "value": {"type": "objekt"}})}
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda at: post(server, bad if at % 2 else good), range(16)))
    for at, (status, reply) in enumerate(replies):
        if at % 2:
            assert status == 400 and "JSON schema cannot be used (Invalid type" in reply["error"]
        else:
            assert status == 200 and reply["text_output"] == "HELLO WORLD"


@pytest.mark.parametrize(
    ("grammar", "match"),
    [
        ({"type": "regex", "value": "(["}, "regular expression cannot be used"),
        ({"type": "yaml", "value": "x"}, "grammar: type must be one of json"),
        ({"type": "json", "value": "{"}, "grammar: value is not JSON"),
    ],
    ids=str,
)
def test_bad_grammars_say_what_to_do(
    server: TritonServer, grammar: dict[str, Any], match: str
) -> None:
    inputs = {"text_input": "abc", "sampling_parameters": parameters(grammar=grammar)}
    code, message = grpc_error(server, "multilora", inputs)
    assert code == "INVALID_ARG" and match in message


def test_logit_bias(server: TritonServer) -> None:
    banned = json.dumps({"logit_bias": {str(ord("l")): -100}, "max_tokens": 20})
    body = {"text_input": "hello", "sampling_parameters": banned}
    assert "l" not in answer(server, body)["text_output"]
    body["sampling_parameters"] = json.dumps({"logit_bias": {"100000": 1}})
    status, reply = post(server, body)
    assert status == 400 and "logit_bias holds 100000; token ids" in reply["error"]


def test_queue_time(server: TritonServer) -> None:
    body = {"text_input": "hello", "return_queue_time": True, "max_tokens": 5}
    assert 0 <= answer(server, body)["queue_time"] < 60
    assert "queue_time" not in answer(server, {"text_input": "hello"})
