"""What TGI refuses is refused in TGI's words, and a field in the wrong place, too."""

import contextvars
import dataclasses
from typing import Any

import pytest
from pydantic import ValidationError

from multilora_gateway.errors import GatewayError, tgi_body
from multilora_gateway.generation.budget import TokenBudget
from multilora_gateway.http.unknown_fields import begin
from multilora_gateway.settings import Settings
from multilora_gateway.tgi.bodies import explained
from multilora_gateway.tgi.parameters import (
    GenerateRequest,
    Parameters,
    check_inputs,
    check_parameters,
    max_new_tokens,
)
from support.gateway.tgi import MAX_INPUT, MAX_TOTAL, base_model

POSITIVE = "must be strictly positive"
UNIT = "must be > 0.0 and < 1.0"
MERGED = {"ids": ["a", "b"], "weights": [1.0, 1.0]}


def refusal(stream: bool = False, **parameters: Any) -> str:
    given = Parameters.model_validate(parameters)
    with pytest.raises(GatewayError) as caught:
        check_parameters(given, Settings(), stream)
    assert (caught.value.status, caught.value.kind) == (422, "validation")
    return tgi_body(caught.value)["error"].removeprefix("Input validation error: ")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": 0}, f"`temperature` {POSITIVE}"),
        ({"repetition_penalty": -1.5}, f"`repetition_penalty` {POSITIVE}"),
        ({"top_k": 0}, f"`top_k` {POSITIVE}"),
        ({"max_new_tokens": 0}, f"`max_new_tokens` {POSITIVE}"),
        ({"top_p": 1.0}, f"`top_p` {UNIT}"),
        ({"typical_p": 0.0}, f"`typical_p` {UNIT}"),
        ({"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
        ({"best_of": 0}, "`best_of` must be > 0 and <= 2. Given: 0"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        (
            {"best_of": 2, "do_sample": True, "seed": 1},
            "`seed` must not be set when `best_of` > 1",
        ),
    ],
)
def test_refusals_are_word_for_word(parameters: dict[str, Any], message: str) -> None:
    assert refusal(**parameters) == message


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"best_of": 2, "do_sample": True},
            "`best_of` != 1 is not supported when streaming tokens",
        ),
        (
            {"decoder_input_details": True},
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
    ],
)
def test_refusals_of_streams(parameters: dict[str, Any], message: str) -> None:
    assert refusal(stream=True, **parameters) == message


@pytest.mark.parametrize(
    "parameters",
    [
        {"watermark": True},
        {"adapter_source": "pbase"},
        {"merged_adapters": MERGED, "adapter_id": "a"},
        {"merged_adapters": {**MERGED, "weights": [1.0]}},
        {"return_k_alternatives": 6},
        {"seed": -1},
        {"stop": [""]},
    ],
)
def test_what_is_not_done_is_refused_by_name(parameters: dict[str, Any]) -> None:
    message = refusal(**parameters)
    assert any(f"`{name}" in message for name in (*parameters, *MERGED)), message


def test_neutral_values_pass() -> None:
    neutral = {"watermark": False, "decoder_input_details": False, "best_of": 1, "stop": []}
    nulls = dict.fromkeys(Parameters.model_fields)
    for parameters in (neutral, nulls, {}):
        for stream in (False, True):
            check_parameters(Parameters.model_validate(parameters), Settings(), stream)


def test_prompts_that_are_empty_or_cut_wrongly() -> None:
    base = base_model()
    with pytest.raises(GatewayError, match=r"^`inputs` cannot be empty$"):
        check_inputs("", Parameters(), base)
    wrong = f"`truncate` must be strictly positive and less than {MAX_INPUT}. Given: "
    for truncate in (0, MAX_INPUT + 1):
        with pytest.raises(GatewayError, match=f"^{wrong}{truncate}$"):
            check_inputs("a", Parameters(truncate=truncate), base)
    check_inputs("a", Parameters(truncate=MAX_INPUT), base)


def test_best_of_fits_the_server() -> None:
    small = dataclasses.replace(base_model(), max_concurrent_requests=1)
    check_inputs("a", Parameters(best_of=1), small)
    with pytest.raises(GatewayError, match=r"`best_of` must be <= 1, .* Given: 2"):
        check_inputs("a", Parameters(best_of=2), small)


def test_lengths() -> None:
    base = base_model()
    budget = TokenBudget(10, base)
    assert max_new_tokens(Parameters(), budget) == MAX_TOTAL - 10
    assert max_new_tokens(Parameters(max_new_tokens=MAX_TOTAL - 10), budget) == MAX_TOTAL - 10
    with pytest.raises(GatewayError) as caught:
        max_new_tokens(Parameters(max_new_tokens=MAX_TOTAL), budget)
    assert caught.value.message == (
        f"`inputs` tokens + `max_new_tokens` must be <= {MAX_TOTAL}. "
        f"Given: 10 `inputs` tokens and {MAX_TOTAL} `max_new_tokens`"
    )
    with pytest.raises(GatewayError) as caught:
        max_new_tokens(Parameters(), TokenBudget(MAX_INPUT + 1, base))
    assert caught.value.message == (
        f"`inputs` must have less than {MAX_INPUT} tokens. Given: {MAX_INPUT + 1}"
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "missing field `inputs`"),
        ({"inputs": None}, "missing field `inputs`"),
        ({"inputs": "a", "parameters": {"\ud800": 1}}, "unicode"),
        ({"inputs": "a", "adapter_id": "b"}, "put it into `parameters`: `parameters.adapter_id`"),
        ({"inputs": "a", "lora_name": "b"}, "name the adapter in `parameters.adapter_id`"),
        ({"inputs": "a", "parameters": {"model": "b"}}, "move it out of `parameters`, beside `"),
        ({"inputs": "a", "parameters": {"stream": True}}, "move it out of `parameters`, beside `"),
        ({"inputs": "a", "parameters": {"top_k": "5"}}, "`parameters.top_k`"),
        ({"inputs": "a", "parameters": {"temperature": float("nan")}}, "`parameters.temperature`"),
        ({"inputs": "\ud800"}, "`inputs`"),
        ({"inputs": "a", "parameters": {"grammar": {"type": "xml", "value": ""}}}, "grammar"),
    ],
)
def test_bad_bodies_are_explained(body: dict[str, Any], words: str) -> None:
    assert words in explanation(body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"inputs": "a", "parameters": {"max_token": 1}}, "did you mean `max_new_tokens`?"),
        ({"inputs": "a", "paramters": {}}, "did you mean `parameters`?"),
        ({"inputs": "a", "parameters": {"zzz": 1}}, "api_token, merged_adapters, best_of, "),
        ({"inputs": "a", "zzz": 1}, "unknown field `zzz`; known are inputs, parameters, stream"),
        ({"inputs": "a", "max_token": 1}, "did you mean `parameters.max_new_tokens`?"),
        (
            {"inputs": "a", "parameters": {"merged_adapters": {**MERGED, "inputs": 1}}},
            "unknown field `parameters.merged_adapters.inputs`; leave it out",
        ),
        ({"inputs": "a", "parameters": {"z" * 9**6: 1}}, "unknown field `parameters.zz"),
    ],
)
def test_a_strict_server_says_what_it_knows(body: dict[str, Any], words: str) -> None:
    def strictly() -> str:
        begin(strict=True)
        return explanation(body)

    assert words in contextvars.copy_context().run(strictly)


def explanation(body: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        GenerateRequest.model_validate(body)
    complaint = caught.value.errors()[0]
    error = explained({**complaint, "loc": ("body", *complaint["loc"])})
    assert len(error.message.encode()) < 1000
    assert (error.status, error.kind) == (422, "validation")
    return error.message


def test_sampling_and_dialect() -> None:
    assert not Parameters(do_sample=False).sampling
    assert Parameters(do_sample=True).sampling
    for name, value in {"temperature": 0.5, "top_k": 2, "top_p": 0.5, "typical_p": 0.5}.items():
        assert Parameters.model_validate({name: value}).sampling
    greedy = Parameters.model_validate({"temperature": 0.0, "do_sample": True, "api_token": None})
    check_parameters(greedy, Settings(), streaming=False)
    assert not greedy.sampling
    assert Parameters.model_validate({"api_token": None}).of_lorax
    assert not Parameters.model_validate({"adapter_id": "a", "seed": None}).of_lorax
    assert "secret" not in repr(Parameters(api_token="secret"))
