"""Tool calls found in answers, however their text is split."""

import json
import random

import pytest

from multilora_gateway.generation.parsing.parts import MoreArguments, ToolCall
from multilora_gateway.generation.parsing.tool_calls import (
    CallOrText,
    HermesParser,
    JsonParser,
    MistralParser,
    ToolParser,
)

LONGEST = "w" * 128
NAMES = {"weather", "add", LONGEST}
WEATHER = '{"name": "weather", "arguments": {"city": "Zürich 🌧"}}'
ADD = '{"name": "add", "parameters": {"a": 1, "b": {"c": []}}}'
RM = '{"name": "rm", "arguments": {}}'
WEATHER_CALL = ToolCall("weather", '{"city": "Zürich 🌧"}')
ADD_CALL = ToolCall("add", '{"a": 1, "b": {"c": []}}')

HERMES_CASES: list[tuple[str, list[CallOrText]]] = [
    ("Hello there.\n", ["Hello there.\n"]),
    (f"<tool_call>\n{WEATHER}\n</tool_call>", [WEATHER_CALL]),
    (f"Let me see.\n\n<tool_call>{WEATHER}</tool_call>\n", ["Let me see.", WEATHER_CALL]),
    (
        f"<tool_call>{WEATHER}</tool_call>\n<tool_call>\n{ADD}\n</tool_call>",
        [WEATHER_CALL, ADD_CALL],
    ),
    (f"<tool_call>{WEATHER}", [WEATHER_CALL]),  # ended without closing
    ("a <tool_calls> b", ["a <tool_calls> b"]),
    ("<tool_call>not json</tool_call>", ["<tool_call>not json</tool_call>"]),
    (f"<tool_call>{RM}</tool_call>", [f"<tool_call>{RM}</tool_call>"]),
    (
        '<tool_call>{"name": "add", "arguments": {"\\"": "</tool_call>"}}</tool_call>',
        [ToolCall("add", '{"\\"": "</tool_call>"}')],
    ),
    (f"<tool_call>{WEATHER[:-1]}</tool_call>!", [WEATHER_CALL, "!"]),  # a brace is missing
    (f"<tool_call>{WEATHER[:-4]}", [ToolCall("weather", '{"city": "Zürich ')]),  # cut off
    (f"<tool_call>{WEATHER[:22]}", [f"<tool_call>{WEATHER[:22]}"]),
    ('<tool_call>{"arguments": {}, "name": "add"}</tool_call>', [ToolCall("add", "{}")]),
    ("1 < 2 <tool", ["1 < 2 <tool"]),
    ("", []),
]
JSON_CASES: list[tuple[str, list[CallOrText]]] = [
    ("Hello there. {}", ["Hello there. {}"]),
    (ADD, [ADD_CALL]),
    (f"\n<|python_tag|>{ADD}", [ADD_CALL]),
    (f"{ADD}; {WEATHER}\n", [ADD_CALL, WEATHER_CALL]),
    ('{"type": "function", "name": "weather"}', [ToolCall("weather", "{}")]),
    ('{"name": "weather", "arguments": "{\\"city\\": 1}"}', [ToolCall("weather", '{"city": 1}')]),
    ('{"name": "Bob", "age": 3} is Bob', ['{"name": "Bob", "age": 3} is Bob']),
    (ADD[:-1], [ADD_CALL]),  # cut off
    (ADD[:-6], [ToolCall("add", '{"a": 1, "b": {"c":')]),
    (ADD[:16], [ADD[:16]]),
    ('{"parameters": {"}": "]"}, "name": "add"}', [ToolCall("add", '{"}": "]"}')]),
    (
        '{"type": "function", "name": "add", "parameters": {"\\"{": 1}, "x": "}"}',
        [ToolCall("add", '{"\\"{": 1}')],
    ),
    ('{"answer": {"name": "add"', ['{"answer": {"name": "add"']),
    ('{"name": "rm", "parameters": {}}', ['{"name": "rm", "parameters": {}}']),
    ("<|python", ["<|python"]),
    ('{"name": ["add"]}', ['{"name": ["add"]}']),
]
MISTRAL_CASES: list[tuple[str, list[CallOrText]]] = [
    ("Hello [there]. ", ["Hello [there]. "]),
    (f"[TOOL_CALLS] [{WEATHER}]", [WEATHER_CALL]),
    (f"[TOOL_CALLS][{WEATHER}, {ADD}]\n", [WEATHER_CALL, ADD_CALL]),
    (
        '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "abcdef123"}]',
        [ToolCall("add", '{"a": 1}')],
    ),
    (f"Let me see. [TOOL_CALLS]{WEATHER}", ["Let me see.", WEATHER_CALL]),
    ('[TOOL_CALLS]weather[ARGS]{"city": "Zürich 🌧"}', [WEATHER_CALL]),
    ('[TOOL_CALLS]weather{"city": "Zürich 🌧"}', [WEATHER_CALL]),
    ('[TOOL_CALLS] weather [CALL_ID]abcdef123[ARGS] {"city": "Zürich 🌧"}', [WEATHER_CALL]),
    (
        '[TOOL_CALLS]add[ARGS]{"a": "}[TOOL_CALLS]"}[TOOL_CALLS]add[ARGS]{}',
        [ToolCall("add", '{"a": "}[TOOL_CALLS]"}'), ToolCall("add", "{}")],
    ),
    ('[TOOL_CALLS]add{"a": {"b": [1', [ToolCall("add", '{"a": {"b": [1')]),  # cut off
    (f"[TOOL_CALLS] [{WEATHER}, ", [WEATHER_CALL]),
    (f"[TOOL_CALLS] [{WEATHER}] !", [WEATHER_CALL, " !"]),
    (f"[TOOL_CALLS] [{WEATHER[:22]}", [f"[TOOL_CALLS] [{WEATHER[:22]}"]),
    ('[TOOL_CALLS]rm[ARGS]{"a": 1} x', ['[TOOL_CALLS]rm[ARGS]{"a": 1} x']),
    (
        '[TOOL_CALLS] [{"name": "rm", "arguments": {}}]',
        ['[TOOL_CALLS] [{"name": "rm", "arguments": {}}]'],
    ),
    (f"[TOOL_CALLS]{LONGEST}[ARGS]{{}}", [ToolCall(LONGEST, "{}")]),
    ("[TOOL_CALLS]add and more", ["[TOOL_CALLS]add and more"]),
    ("[TOOL_CALLS] []", ["[TOOL_CALLS] []"]),
    ("[TOOL_CALLS]add[ARGS]", ["[TOOL_CALLS]add[ARGS]"]),
    ("[TOOL_CALLS", ["[TOOL_CALLS"]),
    ("[TOOL_CALLS]", ["[TOOL_CALLS]"]),
]


def parts_of(parser: ToolParser, pieces: list[str]) -> list[CallOrText]:
    """All parts, texts that follow each other joined."""
    joined: list[CallOrText] = []
    for part in [part for piece in pieces for part in parser.push(piece)] + parser.finish():
        last = joined[-1] if joined else None
        if isinstance(part, str) and isinstance(last, str):
            joined[-1] = last + part
        elif isinstance(part, MoreArguments):
            assert isinstance(last, ToolCall)
            joined[-1] = ToolCall(last.name, last.arguments + part.text)
        else:
            joined.append(part)
    return joined


def splits(text: str) -> list[list[str]]:
    """At once, by character, and at random places."""
    found = [[text], list(text)]
    chance = random.Random(7)
    for _ in range(50):
        cuts = sorted(chance.sample(range(len(text) + 1), min(3, len(text) + 1)))
        found.append([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)])
    return found


@pytest.mark.parametrize(("text", "want"), HERMES_CASES)
def test_hermes_calls_are_found_however_the_text_is_split(
    text: str, want: list[CallOrText]
) -> None:
    for pieces in splits(text):
        assert parts_of(HermesParser(NAMES), pieces) == want, pieces


@pytest.mark.parametrize(("text", "want"), JSON_CASES)
def test_json_calls_are_found_however_the_text_is_split(text: str, want: list[CallOrText]) -> None:
    for pieces in splits(text):
        assert parts_of(JsonParser(NAMES), pieces) == want, pieces


@pytest.mark.parametrize(("text", "want"), MISTRAL_CASES)
def test_mistrals_calls_are_found_however_the_text_is_split(
    text: str, want: list[CallOrText]
) -> None:
    for pieces in splits(text):
        assert parts_of(MistralParser(NAMES), pieces) == want, pieces


def test_text_before_a_call_is_not_held_back() -> None:
    parser = HermesParser(NAMES)
    assert parser.push("Let me see") == ["Let me see"]
    assert parser.push(" <tool_") == []
    assert parser.push("box>") == [" <tool_box>"]


def test_arguments_come_as_they_are_written() -> None:
    hermes, llama3 = HermesParser(NAMES), JsonParser(NAMES)
    assert hermes.push('<tool_call>{"name": "add", "arguments": ') == []
    assert hermes.push("{") == [ToolCall("add", "{")]
    assert hermes.push('"a": 1}') == [MoreArguments('"a": 1}')]
    assert hermes.push("}</tool_call>") == []
    assert llama3.push('{"name": "add", "parameters": {"a"') == [ToolCall("add", '{"a"')]
    assert llama3.push(": 2}}") == [MoreArguments(": 2}")]
    mistral = MistralParser(NAMES)
    assert mistral.push("[TOOL_CALLS]add[ARGS]") == []
    assert mistral.push('{"a"') == [ToolCall("add", ""), MoreArguments('{"a"')]
    assert mistral.push(": 3}") == [MoreArguments(": 3}")]


def test_json_that_is_no_call_is_not_held_back() -> None:
    parser = JsonParser(NAMES)
    assert parser.push('{"na') == []
    assert parser.push('mes": [') == ['{"names": [']
    assert parser.push("1]") == ["1]"]


def test_arguments_are_json_text() -> None:
    (call,) = parts_of(HermesParser(NAMES), [f"<tool_call>{WEATHER}</tool_call>"])
    assert isinstance(call, ToolCall) and json.loads(call.arguments) == {"city": "Zürich 🌧"}
