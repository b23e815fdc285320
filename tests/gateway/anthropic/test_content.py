"""Messages whose content is blocks → the messages of a chat."""

import json
from typing import Any

import pytest

from multilora_gateway.anthropic.body import MessagesBody, MessagesToCount
from multilora_gateway.anthropic.content import chat_messages
from multilora_gateway.errors import GatewayError
from multilora_gateway.openai.bodies import parse
from multilora_gateway.openai.chat import ChatBody
from multilora_gateway.openai.tools import is_forced, usable

HI = {"role": "user", "content": "hi"}
TOOLS = [{"name": name, "input_schema": {"type": "object"}} for name in ("add", "sub")]


def text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def chat(**fields: Any) -> ChatBody:
    asked = {"messages": [HI], "max_tokens": 5, **fields}
    return parse(MessagesBody, json.dumps(asked).encode()).as_chat()


def test_results_of_tools_are_messages_of_their_own() -> None:
    first = {"type": "tool_result", "tool_use_id": "t1", "content": [text("3")]}
    second = {"type": "tool_result", "tool_use_id": "t2", "content": "4", "is_error": False}
    empty = {"type": "tool_result", "tool_use_id": "t3"}
    blocks = [first, second, empty, text("a"), text("b")]
    assert chat_messages([{"role": "user", "content": blocks}], [text("Be.")]) == [
        {"role": "system", "content": [text("Be.")]},
        {"role": "tool", "tool_call_id": "t1", "content": [text("3")]},
        {"role": "tool", "tool_call_id": "t2", "content": [text("4")]},
        {"role": "tool", "tool_call_id": "t3", "content": [text("")]},
        {"role": "user", "content": [text("a"), text("b")]},
    ]


def test_what_the_model_said_is_one_message() -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "redacted_thinking", "data": "x"},
        text("ok"),
        {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
    ]
    (said,) = chat_messages([{"role": "assistant", "content": blocks}], None)
    function = {"name": "add", "arguments": {"a": 1}}
    assert said == {
        "role": "assistant", "content": "ok", "reasoning_content": "hm",
        "tool_calls": [{"id": "t1", "type": "function", "function": function}],
    }  # fmt: skip
    (alone,) = chat_messages([{"role": "assistant", "content": blocks[3:]}], None)
    assert alone["content"] is None  # templates tell a call alone by that


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "tool", "content": "x"}, "messages.1.role must be user, assistant or system"),
        ({"role": "user"}, "messages.1.content must be a string"),
        ({"role": "user", "content": [{"type": "image"}]}, "messages.1.content.0 has the type"),
        (
            {"role": "assistant", "content": [{"type": "tool_use"}]},
            "messages.1.content.0.name must",
        ),
    ],
)
def test_an_error_names_the_message(message: dict[str, Any], error: str) -> None:
    with pytest.raises(GatewayError) as caught:
        chat_messages([HI, message], None)
    assert error in caught.value.message


def test_tools_and_their_choice_are_those_of_a_chat() -> None:
    named = {"type": "tool", "name": "add", "disable_parallel_tool_use": True}
    for choice, names in (({"type": "any"}, ["add", "sub"]), (named, ["add"])):
        body = chat(tools=TOOLS, tool_choice=choice)
        assert is_forced(body.tool_choice)
        assert [t.function.name for t in usable(body.tools, body.tool_choice)] == names
        assert body.parallel_tool_calls is not (choice is named)
    free = chat(tools=TOOLS)
    assert free.tools and free.tools[0].function.parameters == {"type": "object"}
    assert not is_forced(free.tool_choice) and free.parallel_tool_calls
    with pytest.raises(GatewayError, match="needs the name of one"):
        chat(tools=TOOLS, tool_choice={"type": "tool"})


def test_other_fields_of_the_api() -> None:
    form = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {}}}}
    body = chat(
        stop_sequences=["x"], output_config={"format": form, "effort": "low"},
        thinking={"type": "disabled"}, top_k=4, adapter_id="a", metadata={"user_id": "u"},
    )  # fmt: skip
    assert (body.stop, body.max_tokens, body.top_k, body.adapter_id) == (["x"], 5, 4, "a")
    assert body.response_format and body.response_format.grammar()
    assert body.variables()["enable_thinking"] is False
    assert chat(thinking={"type": "enabled", "budget_tokens": 9}).variables()["enable_thinking"]
    assert "enable_thinking" not in chat().variables()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"max_tokens": None}, "max_tokens is missing"),
        ({"messages": []}, "messages is empty"),
        ({"stop": ["x"]}, "send stop_sequences"),
        ({"mcp_servers": [{}]}, "is supported"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0"),
    ],
)
def test_what_cannot_be_done_is_refused(field: dict[str, Any], message: str) -> None:
    with pytest.raises(GatewayError, match=message):
        chat(**field)


def test_what_the_assistant_has_begun_goes_on() -> None:
    begun = {"role": "assistant", "content": "He"}
    assert chat(messages=[HI, begun]).continue_final_message
    call = {"type": "tool_use", "id": "t1", "name": "add", "input": {}}
    for last in (HI, {**begun, "content": [call]}, {**begun, "content": [text("He"), call]}):
        assert not chat(messages=[HI, last]).continue_final_message


def test_a_count_needs_no_limit() -> None:
    assert parse(MessagesToCount, json.dumps({"messages": [HI]}).encode()).as_chat().messages
