"""The input of a response → the messages of a chat."""

import json
from typing import Any

import pytest

from multilora_gateway.errors import GatewayError
from multilora_gateway.openai.bodies import parse
from multilora_gateway.openai.chat import ChatBody
from multilora_gateway.openai.tools import is_forced, usable
from multilora_gateway.responses.body import ResponsesBody
from multilora_gateway.responses.items import chat_messages

USER = {"role": "user", "content": "hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'}
SECOND = {**CALL, "call_id": "c2"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "3"}
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}}


def said(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "id": "msg_1", "role": "assistant", "content": [part]}


def thought(text: str, place: str = "content") -> dict[str, Any]:
    kind = "reasoning_text" if place == "content" else "summary_text"
    return {"type": "reasoning", "id": "r", "summary": [], place: [{"type": kind, "text": text}]}


def called(*ids: str) -> list[dict[str, Any]]:
    function = {"name": "add", "arguments": {"a": 1}}
    return [{"id": each, "type": "function", "function": function} for each in ids]


def chat(**fields: Any) -> ChatBody:
    return parse(ResponsesBody, json.dumps({"input": "hi", **fields}).encode()).as_chat()


def test_a_text_is_what_the_user_says() -> None:
    assert chat_messages("hi", None) == [USER]
    assert chat_messages("hi", "Be.") == [{"role": "system", "content": "Be."}, USER]


def test_what_comes_first_is_one_system_message() -> None:
    given = [{"role": "developer", "content": [{"type": "input_text", "text": "Now."}]}, USER]
    assert chat_messages(given, "Be.") == [{"role": "system", "content": "Be.\n\nNow."}, USER]


def test_one_turn_of_the_model_is_one_message() -> None:
    (turn, *rest) = chat_messages([thought("hm"), said("ok"), CALL, SECOND, OUTPUT, USER], None)
    assert (turn["content"], turn["reasoning_content"]) == ("ok", "hm")
    assert turn["tool_calls"] == called("c1", "c2")
    assert [message["role"] for message in rest] == ["tool", "user"]
    assert rest[0]["tool_call_id"] == "c1"


def test_turns_stay_apart() -> None:
    found = chat_messages(
        [said("a"), said("b"), CALL, OUTPUT, SECOND, thought("hm", "summary")], None
    )
    assert [message["content"] for message in found[:2]] == ["a", "b"]
    assert found[1]["tool_calls"] == called("c1") and found[3]["tool_calls"] == called("c2")
    assert found[3]["content"] is None  # templates tell a call alone by that
    assert (found[4]["content"], found[4]["reasoning_content"]) == ("", "hm")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"type": "item_reference", "id": "x"}, "input.1: an item of type 'item_reference' is not"),
        ({"type": "message", "content": "x"}, "input.1.role must be a string"),
        ({"role": "user", "content": 1}, "input.1.content must be a string"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "reads only text"),
        ({**CALL, "arguments": "{"}, "input.1: the arguments of 'add' are not a JSON object"),
        ({**CALL, "name": None}, "input.1.name must be a string"),
        ({**OUTPUT, "output": None}, "input.1.output must be a string"),
    ],
)
def test_an_error_names_the_item(item: dict[str, Any], message: str) -> None:
    with pytest.raises(GatewayError) as caught:
        chat_messages([USER, item], None)
    assert message in caught.value.message and caught.value.param == "input"


def test_no_input_is_an_error() -> None:
    with pytest.raises(GatewayError, match="input is empty"):
        chat_messages([], "Be.")


def test_tools_and_their_choice_are_those_of_a_chat() -> None:
    named = {"type": "function", "name": "add"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [named]}
    for choice in ("required", named, allowed):
        body = chat(tools=[TOOL, {**TOOL, "name": "sub"}], tool_choice=choice)
        assert is_forced(body.tool_choice)
        names = [tool.function.name for tool in usable(body.tools, body.tool_choice)]
        assert names == (["add", "sub"] if choice == "required" else ["add"])
    assert not is_forced(chat(tools=[TOOL], tool_choice="auto").tool_choice)


def test_formats_are_those_of_a_chat() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    asked = chat(text={"format": form}).response_format
    assert asked and asked.grammar() == {"type": "json", "value": schema}
    asked = chat(text={"format": {"type": "json_object"}}).response_format
    assert asked and asked.grammar() == {"type": "json_object"}
    assert chat(text={"format": {"type": "text"}}).response_format is None
    with pytest.raises(GatewayError, match=r"text\.format needs a schema"):
        chat(text={"format": {"type": "json_schema", "name": "x"}})


def test_shared_fields_reach_the_chat() -> None:
    body = chat(
        adapter_id="a", seed=3, ignore_eos=True, top_k=5, max_output_tokens=7, stream=True,
        reasoning={"effort": "low"}, include=["message.output_text.logprobs"], top_logprobs=2,
    )  # fmt: skip
    found = (body.adapter_id, body.seed, body.ignore_eos, body.top_k, body.max_tokens, body.stream)
    assert found == ("a", 3, True, 5, 7, True)
    assert body.reasoning_effort == "low" and body.most_logprobs() == 2
    assert chat(top_logprobs=2).most_logprobs() is None


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"previous_response_id": "resp_1"}, "send the whole conversation in input"),
        ({"conversation": "c"}, "send the whole conversation in input"),
        ({"background": True}, "only false is supported"),
        ({"max_tokens": 5}, "send max_output_tokens"),
        ({"truncation": "auto"}, "shorten the input"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"n": 2}, "only 1 is supported"),
        ({"user": float("inf")}, "user: out of range"),
        ({"text": {"verbosity": float("nan")}}, "text.verbosity: out of range"),
    ],
)
def test_what_cannot_be_done_is_refused(field: dict[str, Any], message: str) -> None:
    with pytest.raises(GatewayError, match=message):
        chat(**field)
