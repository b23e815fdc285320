"""Requests as they travel, and replies as they are put together."""

import json
import struct
from typing import Any

import pytest

from multilora_client import InvalidRequest
from multilora_client.connection import Endpoint
from multilora_client.protocol import (
    ARGUMENTS,
    CHANNEL_OPTIONS,
    GenerationReply,
    generate_request,
    stop_request,
)
from multilora_client.tensors import decode

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false


def inputs(request: Any) -> dict[str, tuple[str, list[int], Any]]:
    return {
        tensor.name: (tensor.datatype, list(tensor.shape), decode(tensor.datatype, raw))
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def test_a_plain_prompt_sends_only_what_was_given() -> None:
    request = generate_request("multilora", "Grüße", "", False, {})
    assert request.model_name == "multilora"
    assert request.parameters["triton_enable_empty_final_response"].bool_param
    sent = inputs(request)
    assert sent.pop("text_input") == ("BYTES", [1, 1], ["Grüße"])
    assert set(sent) == {
        "return_finish_reason",
        "return_num_input_tokens",
        "return_num_output_tokens",
    }


EXAMPLES = {"INT32": 3, "UINT64": 2**64 - 1, "FP32": 0.5, "BOOL": True, "BYTES": "é"}


def test_every_parameter_travels_with_its_datatype() -> None:
    values: Any = {
        name: ["a", "東"] if many else EXAMPLES[datatype] for name, datatype, many in ARGUMENTS
    }
    values["grammar"] = {"type": "regex", "value": "é+"}
    sent = inputs(generate_request("multilora", "x", "sql", True, values))
    assert sent["adapter_id"] == ("BYTES", [1, 1], ["sql"])
    assert sent["stream"] == ("BOOL", [1, 1], [True])
    assert sent.pop("grammar") == ("BYTES", [1, 1], ['{"type": "regex", "value": "é+"}'])
    for name, datatype, many in ARGUMENTS:
        if name != "grammar":
            elements = values[name] if many else [values[name]]
            assert sent[name] == (datatype, [1, len(elements)], elements)


def test_text_travels_with_its_length_in_bytes() -> None:
    request = generate_request("multilora", "é", "", False, {})
    assert request.raw_input_contents[0] == struct.pack("<I", 2) + "é".encode()


def test_a_chat_travels_as_json() -> None:
    request = generate_request("multilora", [{"role": "user", "content": "ü"}], "", False, {})
    sent = inputs(request)
    assert sent["chat"] == ("BOOL", [1, 1], [True])
    assert json.loads(sent["text_input"][2][0]) == [{"role": "user", "content": "ü"}]


def test_request_ids_differ_and_a_stop_names_its_request() -> None:
    first = generate_request("multilora", "x", "", False, {})
    second = generate_request("multilora", "x", "", False, {})
    assert first.id and first.id != second.id
    stop = stop_request("multilora_llm", first.id)
    assert (stop.model_name, stop.id) == ("multilora_llm", first.id)
    assert inputs(stop)["stop"] == ("BOOL", [1, 1], [True])


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"max_tokens": 2**31}, "max_tokens must be a value of type INT32; got 2147483648"),
        ({"max_tokens": 1.5}, "max_tokens must be a value of type INT32"),
        ({"seed": -1}, "seed must be a value of type UINT64"),
        ({"top_k": True}, "top_k must be a number"),
        ({"temperature": "hot"}, "temperature must be a value of type FP32"),
        ({"stop_words": [1]}, "stop_words must be text"),
        ({"grammar": {"value": object}}, "grammar cannot be sent as JSON .*; give it plain values"),
        ({"max_token": 1}, "unknown parameter max_token; there are max_tokens"),
    ],
)
def test_a_value_that_cannot_travel_is_named(sampling: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        generate_request("multilora", "x", "", False, sampling)


def test_a_message_without_content_is_refused() -> None:
    messages: Any = [{"role": "user", "text": "x"}]
    with pytest.raises(InvalidRequest, match="exactly the keys role and content"):
        generate_request("multilora", messages, "", False, {})


def test_there_is_no_result_before_the_end() -> None:
    with pytest.raises(RuntimeError, match="read to its end"):
        GenerationReply().result()


@pytest.mark.parametrize(
    ("url", "address", "secure"),
    [
        ("localhost:9001", "localhost:9001", False),
        ("gpu-7", "gpu-7:8001", False),
        ("grpc://10.0.0.1:1", "10.0.0.1:1", False),
        ("grpcs://triton.example:443", "triton.example:443", True),
        ("[::1]:8001", "[::1]:8001", False),
    ],
)
def test_addresses(url: str, address: str, secure: bool) -> None:
    assert Endpoint.parse(url) == Endpoint(address, secure)


@pytest.mark.parametrize("url", ["http://localhost:8000", "", "a b", "localhost:8001/v2/", "://x"])
def test_what_is_no_grpc_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        Endpoint.parse(url)


def test_a_server_that_is_back_after_hours_is_found_within_seconds() -> None:
    assert 0 < dict(CHANNEL_OPTIONS)["grpc.max_reconnect_backoff_ms"] <= 2000
    assert dict(CHANNEL_OPTIONS)["grpc.initial_reconnect_backoff_ms"] <= 2000
