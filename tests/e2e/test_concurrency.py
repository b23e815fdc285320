"""Many clients at once: all adapters in one batch, everyone gets the answer they get alone."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from launcher.triton.server import TritonServer
from support.e2e.triton import (
    Example,
    GrpcStream,
    eventually,
    grpc_text,
    metrics,
    post,
    stream_events,
    token_ids,
    wait_until_idle,
)

STREAMS = 64
ENDLESS: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True, "stream": True}


@pytest.fixture(autouse=True)
def idle_afterwards(server: TritonServer) -> Any:
    """All KV blocks and adapter references are back after every test here."""
    yield
    wait_until_idle(server)


def test_64_streams_over_all_adapters(server: TritonServer, demo: list[Example]) -> None:
    mixed = list(islice(cycle(demo), STREAMS))

    def ask(number: int) -> str:
        """Half of them by text through the ensemble, half by ids, with few distinct ids."""
        example = mixed[number]
        inputs: dict[str, Any] = {"text_input": example.prompt}
        model = "multilora"
        if number % 2:
            inputs, model = {"input_ids": token_ids(server, example.prompt)}, "multilora_llm"
        inputs |= {"adapter_id": example.adapter_id, "max_tokens": 200, "stream": True}
        with GrpcStream(server, model, inputs, request_id=f"client-{number % 5}") as stream:
            return stream.text()

    with ThreadPoolExecutor(STREAMS) as threads:
        answers = list(threads.map(ask, range(STREAMS)))
    assert answers == [example.answer for example in mixed]
    adapters = {example.adapter_id for example in mixed} - {""}
    together = eventually(lambda: metrics(server)["multilora_max_adapters_in_batch"], len(adapters))
    assert together == len(adapters)


def test_grpc_cancel(server: TritonServer, demo: list[Example]) -> None:
    ids = token_ids(server, "abc")
    with GrpcStream(server, "multilora_llm", {"input_ids": ids, **ENDLESS}) as stream:
        stream.take()
        _assert_cancelled(server, stream.cancel)


@pytest.mark.parametrize("prompt", ["text_input", "input_ids"])
def test_http_disconnect(server: TritonServer, prompt: str) -> None:
    """Over the model that README.md shows: no ensemble is told that its client has left."""
    value = "abc" if prompt == "text_input" else token_ids(server, "abc")
    events = stream_events(server, {prompt: value, **ENDLESS}, "multilora_llm")
    next(events)
    _assert_cancelled(server, events.close)


@pytest.mark.parametrize("model", ["multilora", "multilora_llm"])
def test_stop_with_the_same_id(server: TritonServer, model: str) -> None:
    """The client that was stopped is told so; the one that stops gets an empty last response."""
    prompt: dict[str, Any] = {"text_input": "abc"}
    if model == "multilora_llm":
        prompt = {"input_ids": token_ids(server, "abc")}
    with GrpcStream(server, model, {**prompt, **ENDLESS}, request_id="endless") as stream:
        stream.take()

        def stop() -> None:
            status, answer = post(server, {**prompt, "stop": True, "id": "endless"}, model)
            assert (status, answer["text_output"]) == (200, "")

        _assert_cancelled(server, stop)
        with pytest.raises(InferenceServerException, match=r"request was cancelled \[CANCELLED\]"):
            stream.text()


def test_a_stop_reaches_whoever_waits_for_a_grammar_and_nobody_later(server: TritonServer) -> None:
    ids = token_ids(server, "abc")

    def slow(factor: int, request_id: str = "") -> GrpcStream:
        """Its grammar takes seconds."""
        grammar = {"type": "json", "value": {"type": "integer", "multipleOf": factor}}
        sampling = json.dumps({"grammar": grammar, "max_tokens": 3})
        inputs = {"input_ids": ids, "sampling_parameters": sampling}
        return GrpcStream(server, "multilora_llm", inputs, request_id)

    # as many as are compiled at a time, and one that waits
    compiled, unharmed, waiting = slow(120011, "same"), slow(120017), slow(120041, "same")
    later = GrpcStream(server, "multilora_llm", {"input_ids": ids, **ENDLESS}, "same")
    with compiled, unharmed, waiting:
        time.sleep(0.7)  # nothing tells that they have arrived
        status, _ = post(server, {"input_ids": ids, "stop": True, "id": "same"}, "multilora_llm")
        assert status == 200
        with later:
            later.take()
            for stopped in (compiled, waiting):
                with pytest.raises(InferenceServerException, match="request was cancelled"):
                    stopped.text()
            assert unharmed.text()
            later.text()
    assert later.outputs


def test_stop_of_an_unknown_id_and_of_none(server: TritonServer) -> None:
    status, answer = post(server, {"text_input": "abc", "stop": True, "id": "nobody"})
    assert (status, answer["text_output"]) == (200, "")
    status, answer = post(server, {"text_input": "abc", "stop": True})
    assert status == 400 and "stop needs the id of the request to cancel" in answer["error"]


def test_cancelling_some_leaves_the_others_alone(server: TritonServer, demo: list[Example]) -> None:
    """Endless streams on every adapter are cut off while others on the same adapters go on."""
    ids = token_ids(server, "abc")
    adapters = sorted({example.adapter_id for example in demo})
    endless = [
        GrpcStream(server, "multilora_llm", {"input_ids": ids, "adapter_id": name, **ENDLESS})
        for name in adapters
    ]
    with ThreadPoolExecutor(len(demo)) as threads:
        for stream in endless:
            stream.__enter__()
        for stream in endless:
            stream.take()
        answers = [
            threads.submit(
                grpc_text,
                server,
                "multilora",
                text_input=example.prompt,
                adapter_id=example.adapter_id,
                max_tokens=200,
            )
            for example in demo
        ]
        for stream in endless:
            stream.cancel()
            stream.__exit__()
        assert [answer.result() for answer in answers] == [example.answer for example in demo]


def _assert_cancelled(server: TritonServer, cancel: Callable[[], None]) -> None:
    """`cancel` ends the endless stream: memory comes back long before it would by itself."""
    assert eventually(lambda: metrics(server)["multilora_running_requests"], 1) == 1
    before = metrics(server)["multilora_generated_tokens_total"]
    cancel()
    wait_until_idle(server)
    assert metrics(server)["multilora_generated_tokens_total"] - before < ENDLESS["max_tokens"] / 2
