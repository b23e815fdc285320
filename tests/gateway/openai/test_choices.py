"""The JSON of choices: chunks of a stream put together are the whole answer."""

import json
from dataclasses import replace
from typing import Any

import pytest

from multilora_gateway.backend.messages import Delta, Token
from multilora_gateway.generation.parallel import GenerationResult
from multilora_gateway.generation.parsing.formats import HERMES, MISTRAL, reasoning_format
from multilora_gateway.generation.parsing.parser import AnswerFormat
from multilora_gateway.openai.chat import ChatChoice
from multilora_gateway.openai.completions import Echo, TextChoice
from multilora_gateway.openai.logprobs import chat_logprobs, token_text
from multilora_text.tokenizer import Tokenizer
from support.e2e.triton import DEMO

CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
PLAIN = AnswerFormat(tools=HERMES, reasoning=None)
TOOLS = replace(PLAIN, names={"add"})
THINKS = replace(TOOLS, reasoning=reasoning_format("qwen3", ""), thoughts="possible")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO / "base")


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Of the text alone: the tokenizer of the demo puts a turn around it."""
    return [each for each in tokenizer.encode(text) if each not in tokenizer.special_ids]


def deltas_of(tokenizer: Tokenizer, text: str, reason: str) -> list[Delta]:
    """One per character."""
    deltas = [
        Delta(each, tuple(Token(token_id, -0.5) for token_id in ids_of(tokenizer, each)))
        for each in text
    ]
    return [*deltas, Delta("", (Token(257, -0.25),), reason)]


def test_chat_chunks_begin_with_the_role_and_end_with_the_reason(tokenizer: Tokenizer) -> None:
    choice = ChatChoice(tokenizer, False, PLAIN)
    chunks = choice.opening()
    for delta in (Delta("he", (Token(1),)), Delta("", (Token(2),)), Delta("y", (), "length")):
        chunks += choice.chunks(delta)
    assert [(chunk["delta"], chunk["finish_reason"]) for chunk in chunks] == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "he"}, None),
        ({"content": "y"}, None),
        ({"content": ""}, "length"),
    ]


def test_streamed_tool_calls_are_numbered(tokenizer: Tokenizer) -> None:
    choice = ChatChoice(tokenizer, False, TOOLS)
    deltas = deltas_of(tokenizer, f"Well. {CALL}\n{CALL}", "stop")
    chunks = [chunk for delta in deltas for chunk in choice.chunks(delta)]
    calls = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", [])]
    assert [call["index"] for call in calls] == sorted(call["index"] for call in calls)
    assert len(calls) > 4  # the arguments come in deltas
    for number in (0, 1):
        first, *more = [call for call in calls if call["index"] == number]
        assert first["id"] and first["function"]["name"] == "add"
        assert not any("id" in call or "name" in call["function"] for call in more)
        texts = [call["function"]["arguments"] for call in (first, *more)]
        assert "".join(texts) == '{"a": 1}'
    assert len({call["id"] for call in calls if "id" in call}) == 2
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == "Well."
    assert chunks[-1]["finish_reason"] == "tool_calls"


def test_a_whole_answer_of_tool_calls_has_no_content(tokenizer: Tokenizer) -> None:
    choice = ChatChoice(tokenizer, False, TOOLS)
    whole = choice.whole(GenerationResult(CALL, (), "stop"))
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] is None
    (call,) = whole["message"]["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}


def test_thoughts_stand_beside_the_content(tokenizer: Tokenizer) -> None:
    text = f"<think>\nhm\n</think>\n\nSo. {CALL}"
    whole = ChatChoice(tokenizer, False, THINKS).whole(GenerationResult(text, (), "stop"))
    message = whole["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "So.")
    assert len(message["tool_calls"]) == 1 and whole["finish_reason"] == "tool_calls"
    choice = ChatChoice(tokenizer, False, THINKS)
    chunks = [c["delta"] for d in deltas_of(tokenizer, text, "stop") for c in choice.chunks(d)]
    assert "".join(chunk.get("reasoning_content", "") for chunk in chunks) == "hm"
    assert "".join(chunk.get("content", "") for chunk in chunks) == "So."
    kinds = [next(iter(chunk)) for chunk in chunks[:-1]]
    order = ["reasoning_content", "content", "tool_calls"]
    assert sorted(kinds, key=order.index) == kinds and {*kinds} == {*order}


def test_thoughts_alone_are_no_content(tokenizer: Tokenizer) -> None:
    cut = GenerationResult("<think>hm", (), "length")
    message = ChatChoice(tokenizer, False, THINKS).whole(cut)["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", None)
    unwanted = ChatChoice(tokenizer, False, THINKS, thoughts=False).whole(cut)["message"]
    assert "reasoning_content" not in unwanted and unwanted["content"] == ""
    none = ChatChoice(tokenizer, False, THINKS).whole(GenerationResult("Yes", (), "stop"))
    assert none["message"]["reasoning_content"] is None and none["message"]["content"] == "Yes"


def test_mistrals_ids_have_nine_letters_and_digits(tokenizer: Tokenizer) -> None:
    form = replace(TOOLS, tools=MISTRAL)
    said = GenerationResult('[TOOL_CALLS]add{"a": 1}[TOOL_CALLS]add{"a": 2}', (), "stop")
    calls = ChatChoice(tokenizer, False, form).whole(said)["message"]["tool_calls"]
    ids = {call["id"] for call in calls}
    assert len(ids) == 2 and all(len(each) == 9 and each.isalnum() for each in ids)


def test_a_call_cut_off_is_a_call_cut_off(tokenizer: Tokenizer) -> None:
    choice = ChatChoice(tokenizer, False, TOOLS)
    whole = choice.whole(GenerationResult(CALL[:-14], (), "length"))
    (call,) = whole["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"a": 1'
    assert whole["finish_reason"] == "length"


def test_arguments_with_a_tag_in_a_string_stay_whole(tokenizer: Tokenizer) -> None:
    for text in ("</tool_call> x <", "x </tool"):
        choice = ChatChoice(tokenizer, False, TOOLS)
        cut = f'<tool_call>{{"name": "add", "arguments": {{"a": "{text}'
        (call,) = choice.whole(GenerationResult(cut, (), "length"))["message"]["tool_calls"]
        assert call["function"]["arguments"] == f'{{"a": "{text}'


def test_one_call_alone_where_parallel_ones_are_not_wanted(tokenizer: Tokenizer) -> None:
    text = f"Well. {CALL}\n{CALL}"
    choice = ChatChoice(tokenizer, False, replace(TOOLS, one_call=True))
    whole = choice.whole(GenerationResult(text, (), "stop"))
    assert len(whole["message"]["tool_calls"]) == 1
    choice = ChatChoice(tokenizer, False, replace(TOOLS, one_call=True))
    deltas = deltas_of(tokenizer, text, "stop")
    chunks = [chunk for delta in deltas for chunk in choice.chunks(delta)]
    calls = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", [])]
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert json.loads(arguments) == {"a": 1} and {call["index"] for call in calls} == {0}


def test_an_answer_without_calls_stays_as_it_is(tokenizer: Tokenizer) -> None:
    whole = ChatChoice(tokenizer, False, TOOLS).whole(GenerationResult("hi \n", (), "stop"))
    assert whole["message"] == {"role": "assistant", "content": "hi \n", "refusal": None}
    assert (whole["logprobs"], whole["finish_reason"]) == (None, "stop")


@pytest.mark.parametrize("tools", [False, True])
def test_every_token_has_its_logprob_once(tokenizer: Tokenizer, tools: bool) -> None:
    deltas = deltas_of(tokenizer, f"é {CALL}", "stop")
    choice = ChatChoice(tokenizer, True, TOOLS if tools else PLAIN)
    chunks = [chunk for delta in deltas for chunk in choice.chunks(delta)]
    told = [entry for chunk in chunks for entry in (chunk["logprobs"] or {}).get("content", [])]
    tokens = tuple(token for delta in deltas for token in delta.tokens)
    whole = ChatChoice(tokenizer, True, PLAIN).whole(GenerationResult("", tokens, "stop"))
    assert told == whole["logprobs"]["content"]
    text = bytes(byte for entry in told for byte in entry["bytes"]).decode()
    assert text == f"é {CALL}<|eos|>"


def test_half_a_character_is_told_by_its_bytes(tokenizer: Tokenizer) -> None:
    first, second = ids_of(tokenizer, "é")
    assert token_text(tokenizer, first) == "bytes:\\xc3"
    (entry, _) = chat_logprobs([Token(first, -1.0), Token(second, -2.0)], tokenizer)["content"]
    assert entry["bytes"] == [0xC3]


def test_a_leading_space_belongs_to_its_token(tokenizer: Tokenizer) -> None:
    assert token_text(tokenizer, ids_of(tokenizer, "a b")[1]) == " "


def test_text_chunks_put_together_are_the_whole(tokenizer: Tokenizer) -> None:
    choice = TextChoice(tokenizer, Echo("say "))
    deltas = deltas_of(tokenizer, "hello", "length")
    chunks = choice.opening() + [chunk for delta in deltas for chunk in choice.chunks(delta)]
    whole: dict[str, Any] = TextChoice(tokenizer, Echo("say ")).whole(
        GenerationResult.joined(deltas)
    )
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"] == "say hello"
    assert chunks[-1]["finish_reason"] == whole["finish_reason"] == "length"
    assert json.dumps(whole)
