"""Answers of chats → thoughts, text and tool calls: the law of every format, at any cut."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multilora_gateway.generation.parsing.formats import reasoning_format, tool_format
from multilora_gateway.generation.parsing.parser import (
    AnswerFormat,
    AnswerParser,
    answer_format,
)
from multilora_gateway.generation.parsing.parts import ParsedAnswer, ToolCall
from multilora_gateway.generation.parsing.reasoning import Thoughts
from multilora_gateway.settings import Settings
from multilora_text.checkpoint_text import CheckpointText
from multilora_text.tokenizer import Tokenizer
from support.tiny.tokenizers import byte_level

NAMES = {"add", "now"}
PIECES = (
    "<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>", "<|python_tag|>",
    "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "add", "now", "rm", '{"name": "add", ',
    '"name": "now"', '"arguments": {"a": "é\\"}"}', '"parameters": {}', "{", "}", "[", "]", ", ",
    ";", '"', "\\", "\n", " ", "x", "é", "🌧",
)  # fmt: skip


def form_of(tools: str, reasoning: str, thoughts: Thoughts, forced: bool = False) -> AnswerFormat:
    return AnswerFormat(
        tools=tool_format(tools, ""), reasoning=reasoning_format(reasoning, ""), names=NAMES,
        forced=forced, thoughts=thoughts,
    )  # fmt: skip


def parsed(form: AnswerFormat, pieces: list[str]) -> ParsedAnswer:
    """Without ids."""
    parser = AnswerParser(form)
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.finish()
    answer = ParsedAnswer.joined(parts)
    assert all(call.id for call in answer.calls)
    return replace(answer, calls=[replace(call, id="") for call in answer.calls])


@pytest.mark.parametrize("tools", ["hermes", "llama3_json", "mistral", "none"])
@pytest.mark.parametrize("thoughts", ["none", "possible", "begun", "inside"])
@given(data=st.data())
@settings(deadline=None, max_examples=45)
def test_a_stream_put_together_is_the_whole(
    data: st.DataObject, tools: str, thoughts: Thoughts
) -> None:
    reasoning = "mistral" if tools == "mistral" else "qwen3"
    form = form_of(tools, reasoning, thoughts, forced=data.draw(st.booleans()))
    text = "".join(data.draw(st.lists(st.sampled_from(PIECES), max_size=12)))
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    pieces = [text[a:b] for a, b in pairwise(sorted({0, len(text), *cuts}))]
    whole = parsed(form, [text])
    assert parsed(form, pieces) == parsed(form, list(text)) == whole


CALL = ToolCall("add", '{"a": 1}')


@pytest.mark.parametrize(
    ("tools", "reasoning", "text"),
    [
        ("hermes", "qwen3", '<think>\nhm\n</think>\n\nSo.\n<tool_call>\n{"name": "add", '
         '"arguments": {"a": 1}}\n</tool_call>'),
        ("mistral", "mistral", '[THINK]hm[/THINK]So.[TOOL_CALLS]add[ARGS]{"a": 1}'),
        ("mistral", "mistral", '[THINK]hm[/THINK]So.[TOOL_CALLS] [{"name": "add", "arguments": '
         '{"a": 1}}]'),
    ],
)  # fmt: skip
def test_calls_follow_thoughts(tools: str, reasoning: str, text: str) -> None:
    want = ParsedAnswer("hm", "So.", [CALL])
    assert parsed(form_of(tools, reasoning, "possible"), [text]) == want
    inside = text.replace("<think>", "").replace("[THINK]", "")
    assert parsed(form_of(tools, reasoning, "begun"), [inside]) == want


def test_only_the_first_call_where_one_is_wanted() -> None:
    form = replace(form_of("mistral", "none", "none"), one_call=True)
    text = '[TOOL_CALLS]add{"a": 1}[TOOL_CALLS]now{"b": 2}'
    assert parsed(form, list(text)).calls == [CALL]


def test_without_tools_or_a_parser_calls_are_text() -> None:
    text = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    assert parsed(form_of("none", "none", "none"), [text]).text == text
    no_tools = replace(form_of("hermes", "none", "none"), names=())
    assert parsed(no_tools, [text]).text == text
    forced = form_of("none", "none", "none", forced=True)
    assert parsed(forced, ['{"name": "add", "arguments": {"a": 1}}']).calls == [CALL]


TOKENIZER = Tokenizer(byte_level(), CheckpointText())
THINKS = "{{ '<think>' + message.reasoning_content + '</think>' }}"


@pytest.mark.parametrize(
    ("parser", "prompt", "bound", "want"),
    [
        ("auto", "assistant\n<think>\n", False, "begun"),
        ("auto", "assistant\n", False, "possible"),
        ("auto", "what is <think>? assistant\n", False, "possible"),
        ("auto", "assistant\n<think>\n\n</think>\n\n", False, "none"),
        ("auto", "assistant\n<think>\n", True, "begun"),
        ("auto", "assistant\n", True, "none"),
        ("deepseek_r1", "assistant\n", True, "begun"),
        ("none", "assistant\n<think>\n", False, "none"),
        ("qwen3", "assistant\n", False, "possible"),
        ("deepseek_r1", "assistant\n", False, "begun"),
        ("deepseek_r1", "assistant\n<think>\n\n</think>\n\n", False, "none"),
    ],
)
def test_the_prompt_tells_whether_thoughts_have_begun(
    parser: str, prompt: str, bound: bool, want: Thoughts
) -> None:
    flags, ids = Settings(reasoning_parser=parser), TOKENIZER.encode_rendered(prompt)
    assert answer_format(flags, THINKS, TOKENIZER, ids, bound=bound).thoughts == want


@pytest.mark.parametrize("parser", ["qwen3", "deepseek_r1"])
@pytest.mark.parametrize(
    ("message", "bound", "want"),
    [
        ("The answer", False, "none"),
        ("<think>hm</think>", False, "none"),
        ("<think>hm</think>\n\nThe answer", True, "none"),
        ("<think>\n", False, "begun"),
        ("<think>\nhm, ", False, "inside"),
        ("<think>\nhm, ", True, "inside"),
        ("<think>a</think>b<think>c", False, "inside"),
        ("hm</think> <think>", False, "begun"),
    ],
)
def test_a_continued_message_tells_whether_thoughts_go_on(
    parser: str, message: str, bound: bool, want: Thoughts
) -> None:
    flags, ids = Settings(reasoning_parser=parser), TOKENIZER.encode_rendered(f"a\n{message}")
    form = answer_format(flags, THINKS, TOKENIZER, ids, bound=bound, continued=message)
    assert form.thoughts == want
    nothing = answer_format(flags, THINKS, TOKENIZER, ids, continued=" ").thoughts
    assert nothing == answer_format(flags, THINKS, TOKENIZER, ids).thoughts


def test_a_grammar_binds_what_follows_the_thoughts() -> None:
    grammar = {"type": "json_object"}
    assert form_of("hermes", "qwen3", "none").bound(grammar) == grammar
    begun = form_of("hermes", "qwen3", "begun", forced=True)
    assert begun.bound(grammar) == {"type": "json_object", "after": "</think>"}
    said = 'hm\n</think>\n\n{"name": "add", "arguments": {"a": 1}}'
    assert parsed(begun, list(said)) == ParsedAnswer("hm", "", [CALL])


def test_a_grammar_knows_no_special_tokens() -> None:
    backend = byte_level()
    backend.add_special_tokens(["</think>"])
    tokenizer, settings = Tokenizer(backend), Settings()
    ids = tokenizer.encode_rendered("<think>\n")
    assert answer_format(settings, THINKS, tokenizer, ids, bound=True).thoughts == "none"
    assert answer_format(settings, THINKS, tokenizer, ids, forced=True).thoughts == "none"
    assert answer_format(settings, THINKS, tokenizer, ids).thoughts == "begun"
    begun = answer_format(settings, THINKS, tokenizer, ids, bound=True, continued="<think>hm")
    assert begun.thoughts == "none"


def test_special_tokens_are_shown_where_marks_are_such() -> None:
    backend = byte_level()
    backend.add_special_tokens(["[TOOL_CALLS]", "[THINK]"])
    tokenizer = Tokenizer(backend, CheckpointText())
    mistral = form_of("mistral", "mistral", "none")
    assert mistral.shows_special_tokens(tokenizer)
    assert not mistral.shows_special_tokens(TOKENIZER)
    assert not replace(mistral, names=()).shows_special_tokens(tokenizer)
    assert not replace(mistral, forced=True).shows_special_tokens(tokenizer)
    assert replace(mistral, names=(), thoughts="possible").shows_special_tokens(tokenizer)
    assert not form_of("hermes", "qwen3", "begun").shows_special_tokens(tokenizer)
