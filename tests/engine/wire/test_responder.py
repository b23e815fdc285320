"""The responder: outputs of an engine → responses to clients, each ending exactly once."""

import json
from collections.abc import Iterator

import pytest

from multilora.errors import ErrorCode, RequestError
from multilora.request import FinishReason, TokenOutput
from multilora.wire.stream import Response
from multilora_api.tensors import RUNNING
from support.engine.responder import EOS, Bench, until


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_a_stream_and_its_counts(bench: Bench) -> None:
    client = bench.add("a")
    bench.engine.outputs.put(bench.say("a", "ab"))
    until(lambda: client.responses)
    bench.engine.outputs.put(bench.say("a", "😀c", FinishReason.LENGTH))
    until(lambda: client.responses[-1].final)
    first, last = client.responses
    assert (first.text, first.finish_reason, first.num_input_tokens) == ("ab", RUNNING, 7)
    assert (last.text, last.finish_reason, len(last.tokens)) == ("😀c", "length", 3)
    assert last.cumulative_logprob == pytest.approx(-0.5 * 5)
    assert bench.observer.events == [("first", 1), ("next", 3)]


def test_without_stream_there_is_one_reply(bench: Bench) -> None:
    client = bench.add("a", stream=False, echo=True)
    for text in ("one ", "two"):
        bench.engine.outputs.put(bench.say("a", text))
    bench.engine.outputs.put([TokenOutput("a", EOS, finish_reason=FinishReason.STOP)])
    until(lambda: client.responses)
    (response,) = client.responses
    assert (response.text, response.finish_reason) == ("prompt one two", "stop")
    assert response.tokens[-1].token_id == EOS


def test_queued_outputs_become_one_reply() -> None:
    bench = Bench(start=False)
    clients = {name: bench.add(name) for name in ("a", "b")}
    for letter in "xyz":
        tokens = [bench.say(name, letter)[0] for name in clients]
        bench.engine.outputs.put(tokens)
    bench.engine.outputs.put(None)
    bench.responder.start()
    bench.responder.join()
    assert [[response.text for response in client.responses] for client in clients.values()] == [
        ["xyz"],
        ["xyz"],
    ]


def test_half_a_character_waits(bench: Bench) -> None:
    client = bench.add("a")
    halves = bench.say("a", "x😀")
    bench.engine.outputs.put(halves[:2])
    until(lambda: client.responses)
    assert client.text == "x"
    assert len(client.responses[0].tokens) == 2
    bench.engine.outputs.put(halves[2:])
    until(lambda: client.text == "x😀")


def test_a_stop_string_ends_the_answer_and_aborts(bench: Bench) -> None:
    client = bench.add("a", stop=("END",))
    bench.engine.outputs.put(bench.say("a", "go E"))
    until(lambda: client.responses)
    assert client.text == "go "
    bench.engine.outputs.put(bench.say("a", "ND more"))
    until(lambda: client.responses[-1].final)
    assert (client.text, client.responses[-1].finish_reason) == ("go ", "stop")
    assert bench.engine.aborted == ["a"]
    cancelled = TokenOutput("a", None, finish_reason=FinishReason.CANCELLED)
    bench.engine.outputs.put([*bench.say("a", "late"), cancelled])
    bench.close()
    assert client.text == "go " and not client.errors


def test_a_client_that_left_is_aborted(bench: Bench) -> None:
    client, other = bench.add("a"), bench.add("b")
    client.cancelled = True
    until(lambda: "a" in bench.engine.aborted)
    assert "b" not in bench.engine.aborted
    cancelled = TokenOutput("a", None, finish_reason=FinishReason.CANCELLED)
    bench.engine.outputs.put([cancelled, *bench.say("b", "fine", FinishReason.LENGTH)])
    until(lambda: client.errors)
    assert client.errors[0].code is ErrorCode.CANCELLED
    until(lambda: other.text == "fine")


def test_stop_cancels_all_of_one_client_id(bench: Bench) -> None:
    for name in ("a#1", "a#2", "b#3"):
        bench.add(name)
    bench.responder.stop("a")
    bench.responder.stop("unknown")
    assert bench.engine.aborted == ["a#1", "a#2"]


def test_errors_reach_the_client(bench: Bench) -> None:
    client = bench.add("a")
    error = RequestError(ErrorCode.UNAVAILABLE, "shutting down")
    bench.engine.outputs.put(
        [
            *bench.say("a", "part"),
            TokenOutput("a", None, finish_reason=FinishReason.ERROR, error=error),
        ]
    )
    until(lambda: client.errors == [error])


def test_a_broken_client_harms_nobody(bench: Bench) -> None:
    broken, other = bench.add("a"), bench.add("b")
    broken.broken = True
    bench.engine.outputs.put(bench.say("a", "x") + bench.say("b", "y", FinishReason.LENGTH))
    until(lambda: other.text == "y")
    assert bench.engine.aborted == ["a"]


def test_a_discarded_request_gets_nothing(bench: Bench) -> None:
    client = bench.add("a")
    bench.responder.discard("a")
    bench.engine.outputs.put(bench.say("a", "x", FinishReason.LENGTH))
    bench.close()
    assert not client.responses and not client.errors


def test_the_observer_ticks_without_traffic(bench: Bench) -> None:
    until(lambda: bench.observer.ticks >= 2)


def test_arrays() -> None:
    top = ((104, -0.1), (105, -2.0))
    tokens = (TokenOutput("a", 104, -0.1, top), TokenOutput("a", 106, -3.0, top))
    response = Response("text", tokens, "length", 5, -3.1)
    names = ("finish_reason", "num_input_tokens", "num_output_tokens")
    wanted = frozenset({*names, "logprobs", "cumulative_logprob"})
    arrays = response.arrays(wanted, lambda ids: f"<{ids[0]}>")
    assert arrays["text_output"].tolist() == [[b"text"]]
    assert arrays["output_ids"].tolist() == [[104, 106]]
    assert arrays["finish_reason"].tolist() == [[b"length"]]
    assert arrays["num_input_tokens"].tolist() == [[5]]
    assert arrays["num_output_tokens"].tolist() == [[2]]
    assert arrays["cumulative_logprob"].tolist() == [[pytest.approx(-3.1)]]
    first, second = json.loads(arrays["logprobs"].item())
    assert first["104"] == {"logprob": -0.1, "rank": 1, "decoded_token": "<104>"}
    assert second["106"] == {"logprob": -3.0, "rank": None, "decoded_token": "<106>"}
    assert set(second) == {"106", "104", "105"}
    assert set(Response("", finish_reason="stop").arrays(frozenset(), str)) == {
        "text_output",
        "output_ids",
    }
