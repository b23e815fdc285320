"""Tensors and parameters of a Triton request → TritonRequest, or an error that says what to do."""

from typing import Any

import numpy as np
import pytest

from multilora.errors import ErrorCode, RequestError
from multilora.request import RequestLimits
from multilora.wire.triton_request import TritonRequest, is_stop, parse_request
from multilora_api.sampling import Grammar

Tensors = dict[str, np.ndarray]
LIMITS = RequestLimits(max_input_tokens=1000, max_total_tokens=2000, vocab_size=100)


def scalar(value: Any, dtype: Any = None) -> np.ndarray:
    if isinstance(value, str):
        return np.array([[value.encode()]], dtype=np.object_)
    return np.array([[value]], dtype=dtype)


def parse(parameters: dict[str, Any] | None = None, **tensors: np.ndarray) -> TritonRequest:
    given: Tensors = {"input_ids": np.array([[5, 6, 7]], dtype=np.int32), **tensors}
    return parse_request(given, parameters or {}, "client", "client#1", LIMITS)


def refused(match: str, parameters: dict[str, Any] | None = None, **tensors: np.ndarray) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        parse(parameters, **tensors)
    assert caught.value.code is ErrorCode.INVALID_ARG


def test_defaults() -> None:
    parsed = parse()
    assert parsed.request.prompt_token_ids == (5, 6, 7)
    assert parsed.request.request_id == "client#1"
    assert (parsed.client_id, parsed.request.adapter_id) == ("client", "")
    assert not parsed.stream and not parsed.echo and not parsed.outputs
    assert parsed.request.sampling.greedy and parsed.request.sampling.max_tokens == 16


def test_typed_tensors() -> None:
    sampling = parse(
        max_tokens=scalar(7, np.int32),
        temperature=scalar(0.5, np.float32),
        top_k=scalar(-1, np.int32),
        seed=scalar(2**64 - 1, np.uint64),
        ignore_eos=scalar(True),
        stop_words=np.array([[b"a", "é".encode()]], dtype=np.object_),
    ).request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (7, 0.5, 0)
    assert sampling.seed == 2**64 - 1
    assert sampling.ignore_eos and sampling.stop == ("a", "é")


def test_sampling_parameters_may_be_strings() -> None:
    text = (
        '{"temperature": "0.5", "max_tokens": "9", "ignore_eos": "true", "stop": "END", '
        '"seed": "18446744073709551615", "lora_name": "sql", "n": "1", "top_p": null}'
    )
    parsed = parse(sampling_parameters=scalar(text))
    sampling = parsed.request.sampling
    assert parsed.request.adapter_id == "sql"
    assert (sampling.temperature, sampling.max_tokens, sampling.stop) == (0.5, 9, ("END",))
    assert sampling.ignore_eos and sampling.seed == 2**64 - 1 and sampling.top_p == 1


def test_typed_wins_over_json_and_json_over_parameters() -> None:
    parsed = parse(
        {"max_tokens": 1, "temperature": 0.1, "top_k": 3, "id": "x", "sequence_id": 0},
        sampling_parameters=scalar('{"max_tokens": 2, "temperature": 0.2, "lora_name": "json"}'),
        max_tokens=scalar(4, np.int32),
        adapter_id=scalar("typed"),
    )
    sampling = parsed.request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (4, 0.2, 3)
    assert parsed.request.adapter_id == "typed"


def test_an_empty_adapter_id_is_no_adapter_id() -> None:
    given = scalar('{"lora_name": "json"}')
    assert parse(adapter_id=scalar(""), sampling_parameters=given).request.adapter_id == "json"
    assert parse(adapter_id=scalar("")).request.adapter_id == ""


def test_returns() -> None:
    parsed = parse(return_finish_reason=scalar(True), return_logprobs=scalar(True))
    assert parsed.outputs == {"finish_reason", "logprobs"}
    assert parsed.request.sampling.logprobs == 0
    asked = scalar('{"logprobs": 3}')
    assert parse(sampling_parameters=asked).request.sampling.logprobs == 3


def test_grammar_and_typical_p_have_tensors() -> None:
    grammar = '{"type": "regex", "value": "é+"}'
    typed = parse(grammar=scalar(grammar), typical_p=scalar(0.5, np.float32))
    assert typed.request.sampling.grammar == Grammar("regex", "é+")
    assert typed.request.sampling.typical_p == 0.5
    assert parse(return_queue_time=scalar(True)).outputs == {"queue_time"}


def test_stop() -> None:
    assert is_stop({"stop": scalar(True)})
    assert not is_stop({"stop": scalar(False)})
    assert not is_stop({})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "sampling_parameters is not JSON"),
        ("[1]", "must be a JSON object"),
        ('{"temprature": 1}', "unknown name 'temprature'; did you mean temperature"),
        ('{"zzz": 1}', "unknown name 'zzz'; known are max_tokens"),
        ('{"max_tokens": "many"}', "max_tokens must be a whole number; got 'many'"),
        ('{"max_tokens": 1.5}', "max_tokens must be a whole number; got 1.5"),
        ('{"max_tokens": true}', "max_tokens must be a whole number; got True"),
        ('{"max_tokens": 1e999}', "max_tokens must be a whole number"),
        ('{"temperature": "hot"}', "temperature must be a number"),
        ('{"temperature": NaN}', "temperature must be 0"),
        ('{"ignore_eos": "maybe"}', "ignore_eos must be true or false"),
        ('{"stop": [1]}', "stop must be a string or a list of strings"),
        ('{"lora_name": 3}', "lora_name must be a string"),
        ('{"n": 2}', "n 2 is not supported"),
        ('{"bad_words": [""]}', "bad_words must be at most 128 strings of 1 to 256 characters"),
        ('{"prompt_logprobs": -1}', "prompt_logprobs must be 0 to 20; got -1"),
        ('{"stop_token_ids": 1}', "stop_token_ids must be a list of token ids"),
        ('{"stop_token_ids": ["x"]}', "stop_token_ids: a token id must be a whole number"),
        (f'{{"stop_token_ids": {[1] * 129}}}', "stop_token_ids must be at most 128"),
    ],
)
def test_bad_sampling_parameters(text: str, reason: str) -> None:
    refused(reason, sampling_parameters=scalar(text))


@pytest.mark.parametrize(
    ("name", "value", "dtype", "reason"),
    [
        ("max_tokens", -3, np.int32, r"max_tokens must be 0 .* or positive; got -3"),
        ("temperature", -0.5, np.float32, "temperature must be"),
        ("temperature", float("nan"), np.float32, "temperature must be"),
        ("top_p", 1.5, np.float32, "top_p must be above 0 and at most 1"),
        ("top_p", 0.0, np.float32, "top_p must be above 0 and at most 1"),
        ("top_k", -2, np.int32, "top_k must be"),
        ("min_tokens", 17, np.int32, "min_tokens must be between"),
    ],
)
def test_out_of_range(name: str, value: float, dtype: Any, reason: str) -> None:
    refused(reason, None, **{name: scalar(value, dtype)})


@pytest.mark.parametrize("token", [-1, -(2**31), 100])
def test_ids_of_no_token_are_refused_before_they_are_decoded(token: int) -> None:
    ids = np.array([[5, token]], dtype=np.int32)
    refused(f"input_ids holds {token}; token ids", input_ids=ids)
    for empty in (ids[:, :0], ids[:0]):
        refused("input_ids is empty; send at least one token", input_ids=empty)


def test_bad_shapes_and_text() -> None:
    refused("input_ids has 2 rows", input_ids=np.zeros((2, 3), dtype=np.int32))
    refused("max_tokens must hold one value; got 2", max_tokens=np.array([[1, 2]]))
    refused("max_tokens must hold one value; got 0", max_tokens=np.empty((1, 0), dtype=np.int32))
    invalid_utf8 = np.array([[b"\xff"]], dtype=np.object_)
    refused("adapter_id is not valid UTF-8", adapter_id=invalid_utf8)
    with pytest.raises(RequestError, match="input_ids is missing"):
        parse_request({}, {}, "", "#1", LIMITS)


def test_misspelt_request_parameters_are_not_ignored() -> None:
    refused("unknown name 'adpater_id'; did you mean adapter_id", {"adpater_id": "sql"})


def test_stream_with_the_prompt_is_refused() -> None:
    echo = scalar(False)
    assert parse(exclude_input_in_output=echo).echo
    refused("exclude_input_in_output", exclude_input_in_output=echo, stream=scalar(True))


def vllm(
    sampling: str = "", parameters: dict[str, Any] | None = None, **tensors: np.ndarray
) -> TritonRequest:
    """As the ensemble `vllm_model` hands a request on."""
    given = {"vllm_text_input": scalar("hé"), **tensors}
    if sampling:
        given["sampling_parameters"] = scalar(sampling)
    return parse_request(given, parameters or {}, "client", "client#1", LIMITS)


def test_what_a_client_of_the_vllm_backend_leaves_out_means_what_it_does_there() -> None:
    parsed = vllm()
    sampling = parsed.request.sampling
    assert (parsed.text, parsed.echo, parsed.stream, parsed.num_answers) == ("hé", True, False, 1)
    assert (sampling.temperature, sampling.max_tokens, sampling.logprobs) == (1.0, 16, None)
    assert not vllm(stream=scalar(True)).echo
    assert not vllm(exclude_input_in_output=scalar(True)).echo
    with pytest.raises(RequestError, match="exclude_input_in_output"):
        vllm(stream=scalar(True), exclude_input_in_output=scalar(False))
    assert vllm('{"temperature": "0", "lora_name": "sql"}').request.sampling.greedy
    assert vllm('{"temperature": null}').request.sampling.temperature == 1.0


def test_logprobs_that_nobody_asked_for_are_not_shown() -> None:
    asked = {"return_logprobs": scalar(True), "return_cumulative_logprob": scalar(True)}
    silent, shown = vllm("", None, **asked), vllm('{"logprobs": 0}', None, **asked)
    assert (silent.shows_logprobs, silent.request.sampling.logprobs) == (False, 0)
    assert shown.shows_logprobs and parse(None, **asked).shows_logprobs


def test_request_parameters_count_where_the_tensor_is_missing() -> None:
    assert vllm("", {"max_tokens": 3, "temperature": 0.5}).request.sampling.max_tokens == 3
    sampling = vllm('{"max_tokens": 4}', {"temperature": 0.5, "zzz": 1}).request.sampling
    assert (sampling.max_tokens, sampling.temperature) == (4, 1.0)
    with pytest.raises(RequestError, match="unknown name 'zzz'"):
        vllm("", {"zzz": 1})


def test_each_of_several_answers_is_a_request() -> None:
    answers = vllm('{"n": "3", "seed": 18446744073709551615}').answers()
    assert [each.request.sampling.seed for each in answers] == [2**64 - 1, 0, 1]
    assert len({each.request.request_id for each in answers}) == 3
    assert {each.client_id for each in answers} == {"client"}
    assert [each.request.sampling.seed for each in vllm('{"n": 2}').answers()] == [None, None]
    (one,) = vllm('{"n": 1}').answers()
    assert one.request.request_id == "client#1"
    for wrong in ("0", '"x"', "1.5"):
        with pytest.raises(RequestError, match="n must be"):
            vllm(f'{{"n": {wrong}}}')


def test_adapter_timeout() -> None:
    assert parse().request.adapter_timeout == 600
    tensors = {"input_ids": np.array([[1]], dtype=np.int32)}
    parsed = parse_request(tensors, {"adapter_timeout": None}, "", "#1", LIMITS, 30.0)
    assert parsed.request.adapter_timeout == 30
    assert parse({"adapter_timeout": "2.5"}).request.adapter_timeout == 2.5
    typed = parse({"adapter_timeout": 9}, adapter_timeout=scalar(0.25, np.float32))
    assert typed.request.adapter_timeout == 0.25


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_adapter_timeout(seconds: float) -> None:
    reason = "adapter_timeout must be a positive number of seconds; got "
    refused(reason, adapter_timeout=scalar(seconds, np.float32))
    refused(reason, {"adapter_timeout": seconds})


def test_adapter_timeout_is_not_read_from_elsewhere() -> None:
    reason = "adapter_timeout must be a positive number"
    for value in ("soon", True, [1], 10**400):
        refused(reason, {"adapter_timeout": value})
    given = scalar('{"adapter_timeout": 5}')
    refused("unknown name 'adapter_timeout'", sampling_parameters=given)


MESSAGES = '[{"role": "user", "content": "hé"}]'


def test_a_chat_brings_its_messages() -> None:
    chat = parse(chat=scalar(True), text_input=scalar(MESSAGES))
    assert chat.messages == [{"role": "user", "content": "hé"}]
    assert chat.request.prompt_token_ids == (5, 6, 7)
    assert parse(text_input=scalar("no JSON")).messages is None
    assert parse(chat=scalar(False), text_input=scalar("no JSON")).messages is None


def test_bad_chats() -> None:
    refused("chat is set but text_input is missing", chat=scalar(True))
    refused("text_input is not JSON", chat=scalar(True), text_input=scalar("hello"))
    invalid_utf8 = np.array([[b"\xff"]], dtype=np.object_)
    refused("text_input is not valid UTF-8", chat=scalar(True), text_input=invalid_utf8)


def test_the_prompt_of_a_chat_comes_later() -> None:
    chat = parse(
        chat=scalar(True), text_input=scalar(MESSAGES), adapter_id=scalar("a"), stream=scalar(True)
    )
    rendered = chat.with_prompt([1, 2])
    assert rendered.request.prompt_token_ids == (1, 2)
    assert rendered.request.adapter_id == "a" and rendered.stream


def test_a_prompt_that_is_too_long_is_refused_before_its_numbers_are_read() -> None:
    million = np.broadcast_to(np.int32(5), (1, 10**12))  # which no list could hold
    refused("the prompt has 1000000000000 tokens but max_input_tokens is 1000", input_ids=million)
