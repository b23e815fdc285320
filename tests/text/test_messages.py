"""Messages as clients write them → as chat templates take them, and what templates see of them."""

import json
from typing import Any

import pytest

from multilora_text.errors import TextError
from multilora_text.messages import template_messages
from multilora_text.tokenizer import Tokenizer
from support.chats import chat, only
from support.tiny.tokenizers import byte_level

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}


def shown(source: str, *messages: Any) -> str:
    return chat(Tokenizer(byte_level()), template_messages(messages), only(source))


def test_what_the_client_wrote_stays() -> None:
    message = {
        "role": "tool", "name": "add", "tool_call_id": "c1", "content": "2", "weight": 0,
        "metadata": {"trace": [None, 1.5]},
    }  # fmt: skip
    assert template_messages([message]) == [message]
    assert json.loads(shown("{{ messages | tojson }}", message)) == [message]
    own = {**CALL, "index": 0, "function": {**CALL["function"], "parsed": True}}
    message = {"role": "assistant", "content": "x", "reasoning_content": "y", "tool_calls": [own]}
    assert template_messages([message]) == [message]


def test_null_is_absent_but_for_content() -> None:
    sent = {**CALLING, "refusal": None, "audio": None, "name": None}
    assert template_messages([sent]) == [CALLING]
    assert template_messages([{"role": "assistant", "tool_calls": [CALL]}]) == [CALLING]
    assert json.loads(shown("{{ messages | tojson }}", sent)) == [CALLING]
    assert json.loads(shown("{{ messages[0] | tojson(indent=1) }}", sent)) == CALLING


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ("{{ m.content is none }}", "True"),
        ("{{ m['content'] is not none }}", "False"),
        ("{{ m.content == none }} {{ m.content != none }}", "True False"),
        ("{{ m.content is string }} {{ m.content is defined }}", "False True"),
        ("{{ m.content | tojson }}", "null"),
        ("{% if m.content %}text{% else %}none{% endif %}", "none"),
        ("[{{ m.content }}]", "[]"),
        ("{{ '[' + m['content'] + ']' }}", "[]"),
        ("[{{ m.content | trim }}]", "[]"),
        ("{{ '[' ~ m.content ~ ']' }}", "[]"),
        ("{{ 'x' in m.content }} {{ m.content | length }}", "False 0"),
        ("{{ 'x' is none }} {{ 'x' is string }} {{ '' is string }}", "False True True"),
        ("{{ tools is none }} {{ nothing is none }}", "True False"),
    ],
)
def test_a_null_is_none_to_who_asks_and_else_no_text(source: str, want: str) -> None:
    assert shown("{% set m = messages[0] %}" + source, CALLING) == want


def test_texts_in_parts_become_one() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache": 1}]
    assert template_messages([{"role": "user", "content": parts}])[0]["content"] == "ab"


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_arguments_become_an_object(arguments: Any) -> None:
    call = {"function": {"name": "add", "arguments": arguments}}
    (taken,) = template_messages([{"role": "assistant", "tool_calls": [call]}])
    assert taken["tool_calls"] == [{"type": "function", **call, "function": CALL["function"]}]
    for empty in ({}, {"arguments": ""}):
        call = {"function": {"name": "add", **empty}}
        (taken,) = template_messages([{"role": "assistant", "tool_calls": [call]}])
        assert taken["tool_calls"][0]["function"] == {"name": "add", "arguments": {}}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_one_name(name: str) -> None:
    message = {"role": "assistant", "content": "x", name: "because"}
    assert template_messages([message]) == [{**message, "reasoning_content": "because"}]


def test_roles_are_for_the_template_to_refuse() -> None:
    sent = [{"role": role, "content": "x"} for role in ("developer", "system", "ipython", "judge")]
    assert template_messages(sent) == sent
    roles = "{% for m in messages %}{{ m.role }} {% endfor %}"
    assert shown(roles, *sent) == "system system ipython judge "
    knows = "{% if messages[0]['role'] in ['system', 'developer'] %}{% endif %}"
    assert shown(knows + roles, *sent) == "developer system ipython judge "


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ("{{ a | tojson }}", '{"b": "é", "c": {"d": null}}'),
        ("{{ a }}", '{"b": "é", "c": {"d": null}}'),
        ("{{ '```' + a + '```' }}", '```{"b": "é", "c": {"d": null}}```'),
        ("{{ '[' ~ a ~ ']' }}", '[{"b": "é", "c": {"d": null}}]'),
        ("{{ a | string | length }} {{ a | length }}", "28 2"),
        ("{{ a is mapping }} {{ a is string }}", "True False"),
        ("{% for key, value in a | items %}{{ key }}={{ value | tojson }};{% endfor %}",
         'b="é";c={"d": null};'),
        ("{% if a is string %}{{ a }}{% else %}{{ a.b }}{% endif %}", "é"),
        ("{{ call | tojson }}", '{"name": "add", "arguments": {"b": "é", "c": {"d": null}}}'),
    ],
)  # fmt: skip
def test_arguments_are_an_object_or_the_text_of_one(source: str, want: str) -> None:
    function = {"name": "add", "arguments": '{"b":"é","c":{"d":null}}'}
    message = {"role": "assistant", "tool_calls": [{"function": function}]}
    names = "{% set call = messages[0].tool_calls[0].function %}{% set a = call.arguments %}"
    assert shown(names + source, message) == want


NINE = (
    "{% if messages[0].tool_calls[0].id|length != 9 or messages[1].tool_call_id | length != 9 %}"
    "{{ raise_exception('ids have 9 characters') }}{% endif %}"
)


@pytest.mark.parametrize("given", ["call_0123456789abcdef01234567", "t1", "abc-12345", "abcDEF123"])
def test_ids_of_calls_fit_the_template(given: str) -> None:
    ids = "{{ messages[0].tool_calls[0].id }} {{ messages[1].tool_call_id }}"
    call = {"id": given, "function": {"name": "add", "arguments": {}}}
    sent = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": given, "content": "3"},
    ]
    assert shown(ids, *sent) == f"{given} {given}"
    of_call, of_result = shown(NINE + ids, *sent).split(" ")
    assert of_call == of_result and len(of_call) == 9 and of_call.isalnum()
    assert (of_call == given) == (given == "abcDEF123")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("hi", "messages.1 must be an object with a role"),
        ({"role": None, "content": "x"}, "messages.1 must be an object with a role"),
        ({"role": "user", "content": None}, "messages.1.content is missing"),
        ({"role": "user", "content": 3}, "messages.1.content must be a string"),
        ({"role": "user", "content": ["x"]}, "messages.1.content has a part of type ''"),
        ({"role": "user", "content": [{"type": "text"}]}, "has a part of type 'text'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "'image_url'; this model reads"),
        ({"role": "assistant", "tool_calls": {}}, "messages.1.tool_calls must be a list"),
        ({"role": "assistant", "tool_calls": [{"name": "a"}]}, "messages.1.tool_calls.0 must be"),
        *(
            (
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "a", "arguments": odd}}],
                },
                "messages.1.tool_calls.0: the arguments of 'a' are not a JSON object",
            )
            for odd in ("[1", "[1]", "null", '{"a": "\\ud800"}', '{"a": NaN}', 1, "[" * 9999)
        ),
    ],
)
def test_what_no_template_can_show_is_refused(message: Any, reason: str) -> None:
    with pytest.raises(TextError) as caught:
        template_messages([{"role": "user", "content": "hi"}, message])
    assert reason in str(caught.value)


def test_a_chat_has_a_message() -> None:
    with pytest.raises(TextError, match="messages is empty"):
        template_messages([])
