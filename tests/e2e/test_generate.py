"""Every way to ask gives the same answer, and it is the right one."""

import json

import pytest

from launcher.triton.server import TritonServer
from support.e2e.triton import (
    Example,
    GrpcStream,
    generate,
    grpc_error,
    grpc_text,
    metrics,
    post,
    stream_events,
    token_ids,
)


def first(demo: list[Example], adapter_id: str) -> Example:
    return next(example for example in demo if example.adapter_id == adapter_id)


def test_every_example_is_answered_exactly(server: TritonServer, demo: list[Example]) -> None:
    """The base model and each adapter, one at a time, over /generate."""
    answers = [generate(server, example.prompt, example.adapter_id) for example in demo]
    assert answers == [example.answer for example in demo]


@pytest.mark.parametrize("adapter_id", ["", "emoji", "sql"])
def test_all_ways_agree(server: TritonServer, demo: list[Example], adapter_id: str) -> None:
    """/generate, /generate_stream and gRPC, by text and by ids; never half a character."""
    example = first(demo, adapter_id)
    body = {"text_input": example.prompt, "adapter_id": adapter_id, "max_tokens": 200}
    pieces = [event["text_output"] for event in stream_events(server, body)]
    assert len(pieces) > 1
    assert "".join(pieces) == example.answer
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert generate(server, example.prompt, adapter_id) == example.answer
    common = {"adapter_id": adapter_id, "max_tokens": 200}
    assert grpc_text(server, "multilora", text_input=example.prompt, **common) == example.answer
    ids = token_ids(server, example.prompt)
    assert grpc_text(server, input_ids=ids, **common) == example.answer
    status, answer = post(server, {"input_ids": ids, **common}, "multilora_llm")
    assert (status, answer["text_output"]) == (200, example.answer)


def test_http_infer(server: TritonServer, demo: list[Example]) -> None:
    """The tokenizer answers; a decoupled model cannot, and Triton says so."""
    prompt = {"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "data": ["hello"]}
    status, answer = post(server, {"inputs": [prompt]}, "tokenizer", "infer")
    assert status == 200
    assert answer["outputs"][0]["data"] == token_ids(server, "hello")
    status, answer = post(server, {"inputs": [prompt]}, "multilora", "infer")
    assert status == 501 and "decoupled" in answer["error"]


def test_optional_outputs(server: TritonServer, demo: list[Example]) -> None:
    example = first(demo, "upper")
    names = ("finish_reason", "num_input_tokens", "num_output_tokens", "logprobs")
    flags = {f"return_{name}": True for name in (*names, "cumulative_logprob")}
    inputs = {"text_input": example.prompt, "adapter_id": "upper", "max_tokens": 200, **flags}
    with GrpcStream(server, "multilora", inputs) as stream:
        assert stream.text() == example.answer
    outputs = stream.outputs
    assert outputs["finish_reason"] == [b"stop"]
    assert outputs["num_input_tokens"] == [len(token_ids(server, example.prompt))]
    assert outputs["num_output_tokens"] == [len(outputs["output_ids"])]
    logprobs = json.loads(outputs["logprobs"][0])
    assert [list(entry) for entry in logprobs] == [[str(i)] for i in outputs["output_ids"]]
    total = sum(entry[key]["logprob"] for entry in logprobs for key in entry)
    assert outputs["cumulative_logprob"] == [pytest.approx(total, abs=1e-3)]


def test_finish_reason_of_a_stream(server: TritonServer, demo: list[Example]) -> None:
    example = first(demo, "upper")
    body = {"text_input": example.prompt, "adapter_id": "upper", "return_finish_reason": True}
    reasons = [event["finish_reason"] for event in stream_events(server, {**body, "max_tokens": 3})]
    assert reasons[-1] == "length" and set(reasons[:-1]) <= {"None"}


def test_sampling_parameters_json(server: TritonServer, demo: list[Example]) -> None:
    """As clients of the Triton vLLM backend send it, values as strings included."""
    example = first(demo, "reverse")
    parameters = json.dumps({"lora_name": "reverse", "max_tokens": "200", "temperature": "0"})
    status, answer = post(server, {"text_input": example.prompt, "sampling_parameters": parameters})
    assert (status, answer["text_output"]) == (200, example.answer)


def test_inputs_inside_parameters(server: TritonServer, demo: list[Example]) -> None:
    example = first(demo, "reverse")
    parameters = {"adapter_id": "reverse", "max_tokens": 200}
    status, answer = post(server, {"text_input": example.prompt, "parameters": parameters})
    assert (status, answer["text_output"]) == (200, example.answer)


def test_stop_words_cut_the_text(server: TritonServer, demo: list[Example]) -> None:
    example = first(demo, "upper")
    stop = example.answer[3:5]
    want = example.answer[: example.answer.index(stop)]
    body = {"text_input": example.prompt, "adapter_id": "upper", "max_tokens": 200}
    body = {**body, "stop_words": [stop, "never"], "return_finish_reason": True}
    status, answer = post(server, body)
    assert (status, answer["text_output"], answer["finish_reason"]) == (200, want, "stop")
    assert "".join(event["text_output"] for event in stream_events(server, body)) == want


def test_the_prompt_comes_back_when_asked(server: TritonServer, demo: list[Example]) -> None:
    example = first(demo, "upper")
    text = generate(server, example.prompt, "upper", exclude_input_in_output=False)
    assert text == example.prompt + example.answer


def test_a_seed_repeats_the_answer(server: TritonServer) -> None:
    def ask(seed: int) -> str:
        return generate(server, "abc", temperature=3.0, seed=seed, max_tokens=40, ignore_eos=True)

    assert ask(7) == ask(7) != ask(8)


def test_chat(server: TritonServer, demo: list[Example]) -> None:
    example = first(demo, "upper")
    messages = json.dumps([{"role": "user", "content": example.prompt}])
    with GrpcStream(
        server,
        "multilora",
        {"text_input": messages, "chat": True, "adapter_id": "upper", "max_tokens": 200},
    ) as stream:
        assert stream.text() == example.answer


def test_figures(server: TritonServer) -> None:
    figures = metrics(server)
    assert figures["multilora_adapters_in_batch"] <= figures["multilora_max_adapters_in_batch"]
    assert figures["multilora_kv_blocks"] > 0
    for histogram in ("time_to_first_token", "time_per_output_token"):
        assert figures[f"multilora_{histogram}_seconds_count"] > 0


def test_a_chat_without_messages(server: TritonServer) -> None:
    status, message = grpc_error(server, "multilora", {"text_input": "hello", "chat": True})
    assert status == "INVALID_ARG"
    assert "chat is set but text_input is not JSON" in message
