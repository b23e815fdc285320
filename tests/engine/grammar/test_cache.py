"""Grammars over the demo's tokenizer, and the demo engine bound by them."""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from multilora.config import DEMO, EngineConfig
from multilora.engine import Engine
from multilora.errors import ErrorCode, RequestError
from multilora.forward.base_model import KVCache
from multilora.grammar.cache import GrammarCache
from multilora.grammar.compiler import GrammarCompiler
from multilora.request import FinishReason, Request
from multilora_api.sampling import Grammar, SamplingParams
from multilora_text.tokenizer import Tokenizer
from support.engine.requests import drain, tokens

TOKENIZER = Tokenizer.from_folder(DEMO / "base")
EOS, VOCAB = 257, 272
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def grammars(vocab_size: int = VOCAB) -> GrammarCache:
    return GrammarCache(GrammarCompiler(TOKENIZER.to_json, vocab_size, (EOS,)), vocab_size)


def regex(text: str) -> Grammar:
    return Grammar("regex", text)


def schema(value: dict[str, Any]) -> Grammar:
    return Grammar("json", json.dumps(value))


def allowed(matcher: Any) -> set[int]:
    bits = int.from_bytes(matcher.allowed(), "little")
    return {token for token in range(bits.bit_length()) if bits >> token & 1}


def refused(grammar: Grammar, match: str, compiler: GrammarCompiler | None = None) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        (compiler or GrammarCompiler(TOKENIZER.to_json, VOCAB, (EOS,))).compile(grammar)
    assert caught.value.code is ErrorCode.INVALID_ARG


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    yield from demo_engine(kv_cache_memory=1 << 26)


def demo_engine(**settings: Any) -> Iterator[Engine]:
    engine = Engine(EngineConfig(device="cpu", threads=1, **settings))
    engine.start()
    yield engine
    engine.close()


def wanted(name: str, grammar: Grammar | None, prompt: str = "Bob, 4", **sampling: Any) -> Request:
    params = SamplingParams(**{"max_tokens": 300, "grammar": grammar, **sampling})
    return Request(name, tuple(TOKENIZER.encode(prompt)), sampling=params)


def test_each_step_allows_what_can_follow_and_the_end_only_eos() -> None:
    matcher = grammars().matcher(regex("ab+"))
    assert allowed(matcher) == {ord("a")}
    matcher.accept(ord("a"))
    assert allowed(matcher) == {ord("b")}
    matcher.accept(ord("b"))
    assert allowed(matcher) == {ord("b"), EOS}
    done = grammars().matcher(regex("a"))
    done.accept(ord("a"))
    assert allowed(done) == {EOS}


def test_ids_beyond_the_tokenizer_are_never_allowed() -> None:
    matcher = grammars(vocab_size=1000).matcher(regex("(.|\\n)+"))
    assert len(matcher.allowed()) == 125 and max(allowed(matcher)) < 256
    smaller = grammars(vocab_size=260).matcher(regex("(.|\\n)+"))
    assert len(smaller.allowed()) == 33


def test_matchers_of_one_grammar_do_not_share_their_state() -> None:
    source = grammars()
    first, second = source.matcher(regex("ab")), source.matcher(regex("ab"))
    first.accept(ord("a"))
    assert allowed(first) == {ord("b")} and allowed(second) == {ord("a")}
    assert allowed(source.matcher(regex("ab"))) == {ord("a")}


def test_json_takes_one_space_and_no_more() -> None:
    for text, whole in (('{"name": "x", "age": 1', True), ('{"name":  ', False), ("{\n", False)):
        matcher = grammars().matcher(schema(PERSON))
        for token in text.encode():
            matcher.accept(token)
        assert (matcher.error is None) is whole, text


@pytest.mark.parametrize(
    ("grammar", "answer"),
    [
        (Grammar("regex", "ab+", "</think>"), "ab"),
        (Grammar("json", '{"type": "object", "required": ["a"]}', "</think>"), '{"a": "</think>"}'),
        (Grammar("json", '{"const": "b"}', "[/é.*]"), '"b"'),
    ],
    ids=str,
)
def test_an_answer_is_free_up_to_a_text(grammar: Grammar, answer: str) -> None:
    source = grammars()

    def fits(text: str) -> bool:
        matcher = source.matcher(grammar)
        for token in [*text.encode(), EOS]:
            matcher.accept(token)
        return matcher.error is None

    for space in ("", "\n\n"):
        assert fits(f"first é {{<\n</thin{grammar.after}{space}{answer}")
        assert fits(f"{grammar.after}{space}{answer}")
    assert not fits(answer) and not fits("free")
    assert not fits(f"{grammar.after}oops") and not fits(f"{grammar.after}{' ' * 9}{answer}")


def test_a_matcher_that_failed_says_so_and_masks_nothing() -> None:
    matcher = grammars().matcher(regex("ab"))
    matcher.accept(ord("z"))
    assert matcher.error and "z" in matcher.error
    assert matcher.allowed() == b"\xff" * (VOCAB // 8)


@pytest.mark.parametrize(
    ("grammar", "match"),
    [
        (regex("(["), "regular expression cannot be used .*correct or simplify"),
        (Grammar("json", '{"type": "objekt"}'), "JSON schema cannot be used .Invalid type: objekt"),
        (schema({"$ref": "http://127.0.0.1/x"}), "JSON schema cannot be used .*x"),
        (schema({"type": "integer", "minimum": 5, "maximum": 1}), "Unsatisfiable schema"),
        (regex("\ud800"), "cannot be used"),
    ],
    ids=str,
)
def test_bad_grammars(grammar: Grammar, match: str) -> None:
    refused(grammar, match)


def test_what_a_server_may_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(regex("a"), "tokenizer.json", GrammarCompiler(None, VOCAB, (EOS,)))
    refused(regex("a"), "eos_token_id", GrammarCompiler(TOKENIZER.to_json, VOCAB, ()))
    refused(
        regex("a"), "cannot read the base model's", GrammarCompiler(lambda: "{}", VOCAB, (EOS,))
    )
    monkeypatch.setitem(sys.modules, "llguidance", None)
    refused(regex("a"), "needs the Python package llguidance, which this server lacks; install")


def test_random_answers_validate(engine: Engine) -> None:
    requests = [
        wanted(f"r{seed}", schema(PERSON), temperature=1 + seed % 4, seed=seed, typical_p=typical)
        for seed, typical in enumerate((1.0, 0.8) * 6)
    ]
    for one in requests:
        engine.submit(one)
    answers = drain(engine, len(requests))
    for outputs in answers.values():
        assert outputs[-1].finish_reason is FinishReason.STOP, outputs[-1]
        jsonschema.validate(json.loads(TOKENIZER.decode(tokens(outputs))), PERSON)
    assert len({tuple(tokens(outputs)) for outputs in answers.values()}) == len(requests)


def test_regex_min_tokens_ignore_eos_and_max_tokens(engine: Engine) -> None:
    digits = regex("[0-9]{3}-[a-f]+")
    cases = {
        "plain": wanted("plain", digits, temperature=2.0, seed=1, max_tokens=200),
        "exact": wanted("exact", regex("[0-9]{5}"), ignore_eos=True, min_tokens=50),
        "long": wanted("long", digits, ignore_eos=True, max_tokens=40),
        "short": wanted("short", digits, max_tokens=2),
    }
    for one in cases.values():
        engine.submit(one)
    outputs = drain(engine, len(cases))
    text = {name: TOKENIZER.decode(tokens(outputs[name])) for name in cases}
    reason = {name: outputs[name][-1].finish_reason for name in cases}
    assert re.fullmatch("[0-9]{3}-[a-f]+", text["plain"]) or reason["plain"] is FinishReason.LENGTH
    assert re.fullmatch("[0-9]{5}", text["exact"]) and reason["exact"] is FinishReason.STOP
    assert re.fullmatch("[0-9]{3}-[a-f]{36}", text["long"])
    assert len(text["short"]) == 2
    assert reason["long"] is reason["short"] is FinishReason.LENGTH
    assert all(0 <= (outputs[name][0].queue_time or 0) < 60 for name in cases)


def test_preemption_and_neighbours_change_nothing(engine: Engine) -> None:
    requests = [
        wanted(f"r{i}", schema(PERSON) if i % 2 else None, "x" * (20 + i), temperature=2.0, seed=i,
               max_tokens=80)
        for i in range(12)
    ]  # fmt: skip
    alone = {}
    for one in requests:
        engine.submit(one)
        alone |= drain(engine, 1)
    block = KVCache.bytes_per_block(engine.base, 16, engine._parts.runner.dtype)
    crowd = {}
    for small in demo_engine(kv_cache_memory=20 * block, max_total_tokens=128):
        for one in requests:
            small.submit(one)
        crowd = drain(small, len(requests))
        assert small.metrics()["multilora_preemptions_total"] > 0
    assert {name: tokens(out) for name, out in crowd.items()} == {
        name: tokens(out) for name, out in alone.items()
    }


def test_a_matcher_that_gives_up_ends_its_request_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = engine._parts.grammars
    broken = source.matcher(regex("a"))
    broken.accept(ord("z"))
    monkeypatch.setattr(source, "matcher", lambda grammar: broken)
    engine.submit(wanted("broken", regex("a")))
    engine.submit(wanted("other", None, max_tokens=5))
    outputs = drain(engine, 2)
    error = outputs["broken"][-1].error
    assert error and "the matcher gave up" in error.message
    assert error.code is ErrorCode.INVALID_ARG and not tokens(outputs["broken"])
    assert outputs["other"][-1].error is None
