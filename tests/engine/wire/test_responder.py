"""The responder: outputs of an engine → responses to clients, each ending exactly once."""

import dataclasses
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from multilora.errors import ErrorCode, RequestError
from multilora.request import FinishReason, PromptToken, Request, TokenOutput
from multilora.wire import stream
from multilora.wire.stream import JointClient, Response, Stream
from multilora.wire.triton_request import TritonRequest
from multilora_api.sampling import SamplingParams
from multilora_api.tensors import RUNNING
from support.engine.responder import EOS, TOKENIZER, Bench, FakeClient, until


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
    until(lambda: bench.observer.events == [("first", 1), ("next", 3)])


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
    (error,) = broken.errors
    assert error.code is ErrorCode.INTERNAL and "; ask again" in error.message


def test_all_that_was_said_is_sent_before_the_end() -> None:
    bench = Bench()
    clients = {str(number): bench.add(str(number)) for number in range(50)}
    for _ in range(20):
        bench.engine.outputs.put([token for name in clients for token in bench.say(name, "x")])
    bench.close()
    assert {client.text for client in clients.values()} == {"x" * 20}


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
    # The second is as likely as the last of `top`, which nothing but the order tells apart.
    tokens = (TokenOutput("a", 104, -0.1, top, 1), TokenOutput("a", 106, -2.0, top, 2))
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
    assert second["106"] == {"logprob": -2.0, "rank": 3, "decoded_token": "<106>"}
    assert [entry["rank"] for entry in second.values()] == [3, 1, 2]
    silent = dataclasses.replace(response, shows_logprobs=False)
    assert silent.arrays(wanted, str)["logprobs"].tolist() == [[b"null"]]
    assert set(Response("", finish_reason="stop").arrays(frozenset(), str)) == {
        "text_output",
        "output_ids",
    }


def test_several_answers_are_one_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_GATHER_SECONDS", 0.0)
    client = FakeClient()
    first, second = JointClient(client, 2, stream=False).parts
    second.send(Response("b", (TokenOutput("r/1", 7),), "stop", 5, -2.0))
    assert not client.responses
    first.send(Response("a", (), "length", 5, -1.0))
    (joint,) = client.responses
    names = "finish_reason num_input_tokens num_output_tokens logprobs queue_time"
    arrays = joint.arrays(frozenset(names.split()), str)
    assert joint.final and arrays["text_output"].tolist() == [[b"a", b"b"]]
    assert arrays["finish_reason"].tolist() == [[b"length", b"stop"]]
    assert arrays["num_input_tokens"].tolist() == [[5]] and arrays["queue_time"].shape == (1, 1)
    assert arrays["num_output_tokens"].tolist() == [[0, 1]]


def said(text: str, ends: str, counts: list[int], logprobs: list[float]) -> list[list[Any]]:
    """Of two answers, apart by a bar each; "-" is one that goes on."""
    texts, reasons = text.encode().split(b"|"), ends.replace("-", RUNNING).encode().split(b"|")
    return [texts, reasons, counts, logprobs]


AT_ONCE = [
    said("ab|c", "-|-", [2, 1], [-2, -3]),
    said("d|e", "-|stop", [1, 1], [-4, -5]),
    said("f|", "length|stop", [1, 0], [-6, -5]),
]
QUICK = [
    said("ab|", "-|-", [2, 0], [-2, 0]),
    said("d|c", "-|-", [1, 1], [-4, -3]),
    said("f|e", "length|stop", [1, 1], [-6, -5]),
]
SLOW = [
    said("a|", "-|-", [1, 0], [-1, 0]),
    said("b|", "-|-", [1, 0], [-2, 0]),
    said("|c", "-|-", [0, 1], [-2, -3]),
    said("d|", "-|-", [1, 0], [-4, -3]),
    said("|e", "-|stop", [0, 1], [-4, -5]),
    said("f|", "length|stop", [1, 0], [-6, -5]),
]


@pytest.mark.parametrize(("seconds", "heard"), [(0.0, AT_ONCE), (0.03, QUICK), (1.0, SLOW)])
def test_a_stream_of_several_answers_gathers_what_they_say(
    seconds: float, heard: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`seconds` pass before each token."""
    now = 0.0
    monkeypatch.setattr(stream, "time", SimpleNamespace(monotonic=lambda: now))
    client = FakeClient()
    parts = JointClient(client, 2, stream=True).parts
    spoken = ((0, "a"), (0, "b"), (1, "c"), (0, "d"), (1, "e"), (0, "f"))
    for number, (which, text) in enumerate(spoken, 1):
        now += seconds
        reason = {"e": "stop", "f": "length"}.get(text, RUNNING)
        parts[which].send(Response(text, (TokenOutput("r", 7),), reason, 5, -float(number)))
    names = ("text_output", "finish_reason", "num_output_tokens", "cumulative_logprob")
    arrays = [response.arrays(frozenset(names), str) for response in client.responses]
    assert [[each[name][0].tolist() for name in names] for each in arrays] == heard
    assert [response.final for response in client.responses][-2:] == [False, True]


def test_one_failed_answer_ends_the_others() -> None:
    client = FakeClient()
    first, second = JointClient(client, 2, stream=True).parts
    assert not second.is_cancelled()
    error = RequestError(ErrorCode.UNAVAILABLE, "full")
    first.fail(error)
    assert second.is_cancelled()
    second.send(Response("late"))
    second.fail(RequestError(ErrorCode.CANCELLED, "cancelled"))
    assert (client.errors, client.responses) == ([error], [])


def test_a_prompt_that_was_sent_as_text_comes_back_as_it_was() -> None:
    """Its tokens may stand for another text."""
    request = Request("r", tuple(TOKENIZER.encode("another")))
    for text, shown in (("As  sent ", "As  sent "), (None, "another")):
        asked = TritonRequest(request, "", False, True, frozenset(), text=text)
        response = Stream(asked, FakeClient(), TOKENIZER).take_response(FinishReason.STOP)
        assert response and response.text == shown


@pytest.mark.parametrize(("skips", "text"), [(False, "</s>"), (True, "")])
def test_special_tokens_are_text_on_request(bench: Bench, skips: bool, text: str) -> None:
    client = bench.add("a", sampling=SamplingParams(skip_special_tokens=skips))
    bench.engine.outputs.put([TokenOutput("a", EOS, finish_reason=FinishReason.LENGTH)])
    until(lambda: client.responses and client.responses[-1].final)
    assert client.text == text


def test_what_ended_the_answer_is_text_on_request(bench: Bench) -> None:
    sampling = SamplingParams(stop=("END",), stop_token_ids=(88,), include_stop_str_in_output=True)
    by_text, by_token = (bench.add(name, sampling=sampling) for name in "ab")
    bench.engine.outputs.put(bench.say("a", "go END more"))
    bench.engine.outputs.put(bench.say("b", "go!", FinishReason.STOP))
    until(lambda: by_text.text == "go END" and by_token.text == "go!")
    plain = bench.add("c")
    bench.engine.outputs.put(bench.say("c", "go!", FinishReason.STOP))
    until(lambda: plain.text == "go")


@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_said_of_a_prompt_comes_once(bench: Bench, streamed: bool) -> None:
    client = bench.add("a", stream=streamed, sampling=SamplingParams(prompt_logprobs=1))
    p, r, o = TOKENIZER.encode("pro")
    said = [PromptToken(r, -2.0, ((p, -0.5),), 3), PromptToken(o, -0.25, ((o, -0.25),), 1)]
    for each in said:
        bench.engine.outputs.put([TokenOutput("a", None, prompt=(each,))])
    for text in "xy":
        bench.engine.outputs.put(bench.say("a", text))
    bench.engine.outputs.put([TokenOutput("a", None, finish_reason=FinishReason.LENGTH)])
    until(lambda: client.responses and client.responses[-1].final)
    assert (client.text, len(client.responses[0].tokens) > 0) == ("xy", True)
    arrays = [
        response.arrays(frozenset({"prompt_logprobs"}), TOKENIZER.decode)
        for response in client.responses
    ]
    told = [entry for each in arrays for entry in json.loads(each["prompt_logprobs"].item())]
    assert told == [
        None,
        {
            str(r): {"logprob": -2.0, "rank": 3, "decoded_token": "r"},
            str(p): {"logprob": -0.5, "rank": 1, "decoded_token": "p"},
        },
        {str(o): {"logprob": -0.25, "rank": 1, "decoded_token": "o"}},
    ]
    assert json.loads(arrays[0]["prompt_logprobs"].item()) == told, "before the first text"


def test_without_max_tokens_there_is_one_reply_without_a_token(bench: Bench) -> None:
    client = bench.add("a", echo=True, stream=False)
    end = TokenOutput("a", None, finish_reason=FinishReason.LENGTH, queue_time=0.5)
    bench.engine.outputs.put([end])
    until(lambda: client.responses)
    (response,) = client.responses
    assert (response.text, response.finish_reason, response.tokens) == ("prompt ", "length", ())
    assert response.queue_time == 0.5 and bench.observer.events == []
