"""vLLM's fields: constraints become the engine's grammar, other settings must change nothing."""

import json
import re
from typing import Any

import pytest

from multilora.grammar.cache import GrammarCache
from multilora.grammar.compiler import GrammarCompiler
from multilora_api.sampling import Grammar
from multilora_gateway.errors import GatewayError
from multilora_gateway.openai.bodies import parse
from multilora_gateway.openai.chat import ChatBody
from multilora_gateway.openai.completions import CompletionBody
from multilora_gateway.settings import Settings
from multilora_text.tokenizer import Tokenizer
from support.e2e.triton import DEMO
from support.gateway.tgi import base_model

SCHEMA = {"type": "object", "properties": {"a": {"const": 1}}}
TEXTS = [
    "a b", "a  b", "naïve 🍕", "漢字", "x\ny\t\r\0", "(?i)z", "",
    r"""a.*+?()|[]{}^$\d/-#&~<>"'`,:;=!@%_""",
]  # fmt: skip


def text(**fields: Any) -> CompletionBody:
    return parse(CompletionBody, json.dumps({"prompt": "hello", **fields}).encode())


def chat(**fields: Any) -> ChatBody:
    return parse(ChatBody, json.dumps({"messages": [], **fields}).encode())


def grammar_of(**fields: Any) -> Any:
    base, settings = base_model(), Settings()
    found = text(**fields).sampling(base, settings).get("grammar")
    assert chat(**fields).sampling(base, settings).get("grammar") == found
    return found


@pytest.mark.parametrize(
    ("older", "newer", "want"),
    [
        ("guided_json", {"json": SCHEMA}, {"type": "json", "value": SCHEMA}),
        ("guided_json", {"json": "{}"}, {"type": "json", "value": "{}"}),
        ("guided_regex", {"regex": "a+"}, {"type": "regex", "value": "a+"}),
        ("guided_choice", {"choice": ["a", "b."]}, {"type": "regex", "value": r"a|b\."}),
        (None, {"json_object": True}, {"type": "json_object"}),
        (None, {"json_object": False, "grammar": None, "disable_fallback": False}, None),
        (None, None, None),
    ],
)
def test_constraints_become_grammars(older: str | None, newer: Any, want: Any) -> None:
    assert grammar_of(structured_outputs=newer) == want
    if older:
        assert grammar_of(**{older: next(iter(newer.values()))}) == want


def test_each_choice_and_nothing_else_is_allowed() -> None:
    tokenizer = Tokenizer.from_folder(DEMO / "base")
    end = tokenizer.token_id("<|eos|>")
    assert end is not None
    grammars = GrammarCache(GrammarCompiler(tokenizer.to_json, 272, (end,)), 272)
    grammar = grammar_of(structured_outputs={"choice": TEXTS})

    def is_answer(answer: str) -> bool:
        ids = [each for each in tokenizer.encode(answer) if each not in tokenizer.special_ids]
        matcher = grammars.matcher(Grammar(grammar["type"], grammar["value"]))
        for token_id in [*ids, end]:
            matcher.accept(token_id)
        return matcher.error is None

    assert all(map(is_answer, TEXTS))
    assert not any(map(is_answer, ("ab", "A b", "Z", "aab", "a b ", "x\ny")))


FORM = {"type": "json_object"}


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        {"structured_outputs": {"regex": "a", "json_object": True}},
        {"structured_outputs": {"json": {}}, "response_format": FORM},
        {"guided_json": {}, "structured_outputs": {"json": {}}},
        {"guided_regex": "a", "guided_choice": ["a"]},
    ],
)
def test_an_answer_has_one_constraint(fields: Any) -> None:
    with pytest.raises(GatewayError, match="one constraint: send one of"):
        grammar_of(**fields)
    assert grammar_of(structured_outputs={"regex": "a"}, response_format={"type": "text"})


@pytest.mark.parametrize("choice", [[], [""]])
def test_a_choice_needs_a_text(choice: Any) -> None:
    with pytest.raises(GatewayError, match="choice holds no text"):
        grammar_of(guided_choice=choice)


NEUTRAL = {
    "spaces_between_special_tokens": True,
    "use_beam_search": False, "length_penalty": 1.0, "priority": 0, "request_id": "x",
    "return_token_ids": False, "prompt_logprobs": None,
}  # fmt: skip
OF_CHATS = {"add_special_tokens": False, "echo": False}


def test_settings_that_change_nothing_are_taken() -> None:
    base, settings = base_model(), Settings()
    for body in (text(**NEUTRAL, add_special_tokens=True), chat(**NEUTRAL, **OF_CHATS)):
        assert body.sampling(base, settings) == {"temperature": 1.0}
    assert text(length_penalty=1).length_penalty == 1


def test_stop_tokens_are_the_engines() -> None:
    base, settings = base_model(), Settings()
    for make in (text, chat):
        assert make(stop_token_ids=[5, 7]).sampling(base, settings)["stop_token_ids"] == [5, 7]
        with pytest.raises(GatewayError, match="stop_token_ids"):
            make(stop_token_ids=["5"])


def test_which_tokens_may_come_is_for_the_engine_to_say() -> None:
    base, settings = base_model(), Settings()
    asked: dict[str, Any] = {
        "bad_words": ["no"], "allowed_token_ids": [5, 7], "include_stop_str_in_output": True,
    }  # fmt: skip
    for make in (text, chat):
        assert asked.items() <= make(**asked).sampling(base, settings).items()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("spaces_between_special_tokens", False, "only true is supported; leave it out"),
        ("spaces_between_special_tokens", 1, "only true is supported; leave it out"),
        ("length_penalty", 2, "only 1.0 is supported; leave it out"),
        ("priority", False, "only 0 is supported; leave it out"),
        ("use_beam_search", True, "only false is supported; leave it out"),
        ("guided_grammar", "root ::= x", "not supported; leave it out"),
    ],
)
def test_settings_that_would_change_something_are_refused(
    name: str, value: Any, message: str
) -> None:
    for make in (text, chat):
        with pytest.raises(GatewayError, match=re.escape(f"{name}: {message}")) as caught:
            make(**{name: value})
        assert caught.value.param == name


def test_whether_special_tokens_are_shown_is_the_engines() -> None:
    for make in (text, chat):
        sampling = make(skip_special_tokens=False).sampling(base_model(), Settings())
        assert sampling["skip_special_tokens"] is False


@pytest.mark.parametrize("name", OF_CHATS)
def test_the_other_value_of_what_only_chats_have_is_refused(name: str) -> None:
    with pytest.raises(GatewayError, match=f"{name}: only .* is supported"):
        chat(**{name: not OF_CHATS[name]})


def test_an_answer_continues_a_message_or_is_a_new_one() -> None:
    assert chat(continue_final_message=True, add_generation_prompt=False).continues
    assert chat(continue_final_message=True).continues
    assert not chat(continue_final_message=False, add_generation_prompt=True).continues
    with pytest.raises(GatewayError, match="cannot continue the last message and be a new one"):
        _ = chat(continue_final_message=True, add_generation_prompt=True).continues


def test_log_probabilities_of_prompts_come_in_whole_answers() -> None:
    for make in (text, chat):
        with pytest.raises(GatewayError, match="leave out stream"):
            make(prompt_logprobs=0, stream=True).sampling(base_model(), Settings())
        for wrong in (-1, 21):
            with pytest.raises(GatewayError, match="prompt_logprobs"):
                make(prompt_logprobs=wrong)


def test_what_structured_outputs_cannot_hold_is_named() -> None:
    with pytest.raises(GatewayError, match=r"structured_outputs\.grammar: not supported"):
        text(structured_outputs={"grammar": "x"})
