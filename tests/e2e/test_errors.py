"""Bad input gets its code and a sentence with a remedy, and nobody else notices."""

import json
import threading
import urllib.error
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from launcher.triton.server import TritonServer
from support.e2e.triton import DIRECT, SECONDS, Example, GrpcStream, grpc_error, post, token_ids

INVALID, NOT_FOUND = "INVALID_ARG", "NOT_FOUND"
BAD_TEXT: list[tuple[dict[str, Any], str, str]] = [
    ({"adapter_id": "nobody"}, NOT_FOUND, "adapter 'nobody' is not known; name it in"),
    ({"sampling_parameters": '{"lora_name": "x"}'}, NOT_FOUND, "adapter 'x' is not known"),
    ({"max_tokens": -5}, INVALID, "max_tokens must be 0 (generate nothing) or positive; got -5"),
    ({"max_tokens": 5000}, INVALID, "exceed max_total_tokens 1024; lower max_tokens to at most"),
    ({"temperature": -1.0}, INVALID, "temperature must be 0 (greedy)"),
    ({"top_p": 2.0}, INVALID, "top_p must be above 0 and at most 1; got 2"),
    ({"sampling_parameters": "{"}, INVALID, "sampling_parameters is not JSON"),
    ({"sampling_parameters": '{"tempereture": 1}'}, INVALID, "did you mean temperature?"),
    ({"text_input": ""}, INVALID, "text_input is empty; send a prompt"),
    ({"text_input": "x" * 2000}, INVALID, "max_input_tokens is 1023; shorten it or raise"),
    ({"exclude_input_in_output": False, "stream": True}, INVALID, "is not supported; leave one"),
]
BAD_IDS: list[tuple[Any, str]] = [
    ([-1], "input_ids holds -1; token ids of this base model are 0 to 271"),
    ([1, 100000], "input_ids holds 100000"),
    (np.zeros((1, 0), dtype=np.int32), "input_ids is empty; send at least one token"),
    (np.zeros((2, 3), dtype=np.int32), "input_ids has 2 rows; send one prompt per request"),
]


@pytest.fixture(scope="module", autouse=True)
def bystander(server: TritonServer, demo: list[Example]) -> Iterator[None]:
    """Ask for one answer again and again while the tests of this module run; all must be right."""
    example = next(example for example in demo if example.adapter_id == "upper")
    inputs = {"text_input": example.prompt, "adapter_id": "upper", "max_tokens": 200}
    answers: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            with GrpcStream(server, "multilora", {**inputs, "stream": True}) as stream:
                answers.append(stream.text())

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    done.set()
    thread.join()
    assert answers and set(answers) == {example.answer}


@pytest.mark.parametrize(("bad", "status", "message"), BAD_TEXT, ids=lambda value: str(value)[:40])
def test_bad_text_requests(
    server: TritonServer, bad: dict[str, Any], status: str, message: str
) -> None:
    inputs = {"text_input": "abc", **bad}
    got = grpc_error(server, "multilora", inputs)
    assert got[0] == status and message in got[1]
    if "stream" in inputs:  # /generate takes no streams
        return
    code, answer = post(server, inputs)
    assert 400 <= code < 500 and message in answer["error"]


@pytest.mark.parametrize(("ids", "message"), BAD_IDS, ids=lambda value: str(value)[:40])
def test_bad_ids(server: TritonServer, ids: Any, message: str) -> None:
    status, text = grpc_error(server, "multilora_llm", {"input_ids": ids})
    assert status == INVALID and message in text


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_wrong_dtype(server: TritonServer, dtype: Any) -> None:
    """Refused by the Triton server itself, which gives no status to this in a stream."""
    _, text = grpc_error(server, "multilora_llm", {"input_ids": np.zeros((1, 3), dtype=dtype)})
    assert "input_ids" in text and "INT32" in text


def test_a_prompt_that_is_missing(server: TritonServer) -> None:
    """Every input is optional for the Triton server: the model says what is missing."""
    chat = {"name": "chat", "datatype": "BOOL", "shape": [1, 1], "data": [True]}
    code, answer = post(server, {"inputs": [chat]}, "tokenizer", "infer")
    assert code == 400 and "text_input is missing; send a prompt [INVALID_ARG]" in answer["error"]


def test_two_rows_of_text(server: TritonServer) -> None:
    rows = np.array([[b"one"], [b"two"]], dtype=np.object_)
    status, text = grpc_error(server, "multilora", {"text_input": rows})
    assert status == INVALID and "text_input has 2 rows" in text


def test_a_prompt_that_fits_only_without_its_answer(server: TritonServer) -> None:
    ids = token_ids(server, "x" * 1000)
    room = 1024 - len(ids)
    inputs = {"input_ids": ids, "max_tokens": room + 1}
    status, text = grpc_error(server, "multilora_llm", inputs)
    assert status == INVALID and f"lower max_tokens to at most {room}" in text


def test_a_misspelt_key_is_no_base_model_answer(server: TritonServer) -> None:
    code, answer = post(server, {"text_input": "abc", "adpater_id": "upper"})
    assert code == 400 and "did you mean adapter_id?" in answer["error"]


def test_json_of_the_wrong_type(server: TritonServer) -> None:
    for body in ({"text_input": 5}, {"text_input": "abc", "max_tokens": "many"}):
        code, answer = post(server, body)
        assert code in (400, 500) and "parse" in answer["error"].lower()


@pytest.mark.parametrize(
    "model", ["multilora", "vllm_model", "multilora_llm", "tokenizer", "adapters"]
)
@pytest.mark.parametrize("extra", [b'"zz\xb9": 5', b'"zz": "\xb9"', b'"id": "\xb9"'])
def test_names_and_values_that_are_no_utf8(server: TritonServer, model: str, extra: bytes) -> None:
    """They reach a model as parameters, where Python cannot read them."""
    first = b'"action": "list"' if model == "adapters" else b'"text_input": "hi"'
    url = f"{server.http_url}/v2/models/{model}/generate"
    with pytest.raises(urllib.error.HTTPError) as caught:
        DIRECT.open(url, b"{" + first + b", " + extra + b"}", timeout=SECONDS)
    message = json.load(caught.value)["error"]
    assert caught.value.code == 400 and "is not valid UTF-8; encode the request so" in message
