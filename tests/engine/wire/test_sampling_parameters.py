"""Sampling parameters that are objects: grammar and logit_bias; and typical_p."""

import json
from typing import Any

import pytest

from multilora.errors import ErrorCode, RequestError
from multilora.wire.sampling_parameters import (
    check_names,
    parse_sampling_parameters,
    sampling_params,
)
from multilora_api.sampling import Grammar, SamplingParams


def read(text: str) -> SamplingParams:
    values = parse_sampling_parameters(text)
    check_names(values, "sampling_parameters")
    return sampling_params(values)


def test_grammar_bias_and_typical_p() -> None:
    params = read(
        '{"typical_p": "0.9", "logit_bias": {"7": -100, "8": "1.5"}, '
        '"grammar": {"type": "regex", "value": "é+"}}'
    )
    assert params.logit_bias == ((7, -100.0), (8, 1.5)) and params.typical_p == 0.9
    assert params.grammar == Grammar("regex", "é+")
    assert read('{"logit_bias": {"7": 1, "07": 2}}').logit_bias == ((7, 2.0),)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"typical_p": 0}', "typical_p must be above 0 and at most 1; got 0"),
        ('{"repetition_penalty": 1e38}', "repetition_penalty must be 0.01 to 100"),
        ('{"repetition_penalty": 1e-46}', "repetition_penalty must be 0.01 to 100"),
        ('{"logit_bias": [1]}', "logit_bias must be an object such as"),
        ('{"logit_bias": {"a": 1}}', "logit_bias: a token id must be a whole number; got 'a'"),
        ('{"logit_bias": {"1": 101}}', "between -100 and 100; got 101"),
        ('{"logit_bias": {"-1": 1}}', "logit_bias must map token ids"),
        ('{"grammar": 3}', "grammar must be a JSON object; got int"),
        ("[" * 100000, "sampling_parameters is not JSON"),
    ],
    ids=lambda value: value[:40],
)
def test_bad_values(text: str, match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        read(text)
    assert caught.value.code is ErrorCode.INVALID_ARG


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        ({"type": "json", "value": {"b": 1, "a": 2}}, "json", '{"b": 1, "a": 2}'),
        ({"type": "json", "value": '{"b": 1}'}, "json", '{"b": 1}'),
        ('{"type": "regex", "value": "a+"}', "regex", "a+"),
        ({"type": "json_object"}, "json", '{"type": "object"}'),
        ({"type": "json_schema", "value": {"name": "x", "schema": {"a": 1}}}, "json", '{"a": 1}'),
        ({"type": "json_schema", "value": {"type": "object"}}, "json", '{"type": "object"}'),
    ],
    ids=str,
)
def test_shapes(value: Any, kind: str, text: str) -> None:
    assert sampling_params({"grammar": value}).grammar == Grammar(kind, text)  # type: ignore[arg-type]
    given = json.loads(value) if isinstance(value, str) else value
    later = sampling_params({"grammar": {**given, "after": "</think>"}}).grammar
    assert later == Grammar(kind, text, "</think>")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("{", "grammar is not JSON"),
        ([], "grammar must be a JSON object; got list"),
        ({"type": "lark", "value": "x"}, "type must be one of json, json_schema"),
        ({"type": "json"}, "value is missing; send for example"),
        ({"type": "json", "value": 3}, "grammar: value must be a JSON object; got int"),
        ({"type": "json", "value": "{"}, "grammar: value is not JSON"),
        ({"type": "regex", "value": {}}, "value must be a regular expression as a string"),
        ({"type": "regex", "value": "a", "x": 1}, "unknown name 'x'"),
        ({"type": "regex", "value": "a", "after": 1}, "after must be a string of up to 64"),
        ({"type": "json_object", "after": "x" * 65}, "after must be a string of up to 64"),
    ],
    ids=str,
)
def test_bad_shapes(value: Any, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        sampling_params({"grammar": value})


def structured(value: Any, name: str = "structured_outputs") -> Grammar | None:
    return read(json.dumps({name: value})).grammar


@pytest.mark.parametrize("name", ["structured_outputs", "guided_decoding"])
def test_vllms_constraints(name: str) -> None:
    """An object, or its JSON text, as clients of the Triton vLLM backend send it."""
    for value in ({"json": {"b": 1}}, '{"json": {"b": 1}}', '{"json": "{\\"b\\": 1}"}'):
        assert structured(value, name) == Grammar("json", '{"b": 1}')
    assert structured({"regex": "a+", "json": None}, name) == Grammar("regex", "a+")
    assert structured({"choice": ["a.b", "c"]}, name) == Grammar("regex", "a\\.b|c")
    assert structured({"json_object": True}, name) == Grammar("json", '{"type": "object"}')
    assert structured({"json_object": False, "disable_fallback": True}, name) is None


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("{", "structured_outputs is not JSON"),
        ({"grammar": "root ::= x"}, "structured_outputs: grammar 'root ::= x' is not supported"),
        ({"jsn": {}}, "unknown name 'jsn'; known are json, regex, choice, json_object"),
        ({"regex": "a", "json": {}}, "one constraint; send json or regex alone"),
        ({"choice": [""]}, "choice holds no text"),
        ({"choice": [1]}, "choice must be a string or a list of strings"),
        ({"regex": 3}, "value must be a regular expression as a string; got 3"),
    ],
    ids=str,
)
def test_bad_constraints(value: Any, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        structured(value)


def test_two_names_of_one_thing() -> None:
    both = '{"grammar": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}'
    with pytest.raises(RequestError, match="structured_outputs says what grammar says already"):
        read(both)


def test_which_tokens_may_come() -> None:
    params = read('{"bad_words": ["no"], "allowed_token_ids": [4, "5"]}')
    assert (params.bad_words, params.allowed_token_ids) == (("no",), (4, 5))
    assert read('{"include_stop_str_in_output": "true"}').include_stop_str_in_output
