"""A shared stream: what many requests are told in one response, and when it ends."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from multilora.errors import ErrorCode, RequestError
from multilora.request import FinishReason, TokenOutput
from multilora.wire import shared_stream
from multilora.wire.response import JointResponse, Response, SharedPart, SharedResponse
from multilora.wire.stream import Client
from support.engine.responder import Bench, FakeClient, until


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture
def opener(bench: Bench) -> FakeClient:
    opener = FakeClient()
    bench.responder.shared.open("all", opener)
    assert opener.responses == [SharedResponse(())], "from now on others may name it"
    return opener


def join(bench: Bench, name: str) -> FakeClient:
    """Of the request of that name; the client that it is on its own."""
    own = FakeClient()
    bench.add(name, client=bench.responder.shared.join("all", name, own))
    return own


def said(opener: FakeClient, name: str) -> list[Response]:
    return [
        part.response
        for response in opener.responses
        for part in response.parts
        if part.request_id == name
    ]


def test_a_step_is_one_response(bench: Bench, opener: FakeClient) -> None:
    owns = {name: join(bench, name) for name in "abc"}
    bench.engine.outputs.put([bench.say(name, name)[0] for name in owns])
    until(lambda: len(opener.responses) == 2)
    last = opener.responses[-1]
    assert [(part.request_id, part.response.text) for part in last.parts] == [
        (name, name) for name in "abc"
    ]
    bench.engine.outputs.put(
        [
            *bench.say("a", "x"),
            *bench.say("b", "y", FinishReason.LENGTH),
            TokenOutput("c", None, finish_reason=FinishReason.CANCELLED),
        ]
    )
    until(lambda: owns["b"].responses and owns["c"].errors)
    assert [part.response.text for part in opener.responses[2].parts] == ["x", "y"]
    (end,) = owns["b"].responses
    assert (end.text, end.finish_reason, end.tokens) == ("", "length", ())
    assert owns["c"].errors[0].code is ErrorCode.CANCELLED and not owns["a"].responses
    assert [response.finish_reason for response in said(opener, "b")] == ["None", "length"]


def test_the_last_word_is_shared_before_the_request_ends(bench: Bench, opener: FakeClient) -> None:
    seen: list[int] = []

    class Watching(FakeClient):
        def send(self, response: Any) -> None:
            seen.append(len(said(opener, "a")))

    bench.add("a", client=bench.responder.shared.join("all", "a", Watching()))
    bench.engine.outputs.put(bench.say("a", "hi", FinishReason.LENGTH))
    until(lambda: seen)
    assert seen == [1]


def test_one_that_nobody_uses_ends(
    bench: Bench, opener: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_stream, "_IDLE_SECONDS", 0.05)
    own = join(bench, "a")
    bench.engine.outputs.put(bench.say("a", "hi"))
    until(lambda: len(opener.responses) == 2)
    events = bench.observer.ticks
    until(lambda: bench.observer.ticks > events + 3)
    assert not opener.responses[-1].final, "a request is running"
    bench.engine.outputs.put(bench.say("a", "!", FinishReason.LENGTH))
    until(lambda: opener.responses[-1] == SharedResponse((), final=True))
    assert own.responses
    with pytest.raises(RequestError, match="no shared stream is open under 'all'") as caught:
        join(bench, "b")
    assert caught.value.code is ErrorCode.UNAVAILABLE


def test_it_lasts_a_while_after_its_last_request(
    bench: Bench, opener: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_stream, "_IDLE_SECONDS", 0.5)
    own, began = join(bench, "a"), time.monotonic()
    until(lambda: time.monotonic() > began + 0.6)
    bench.engine.outputs.put(bench.say("a", "hi", FinishReason.LENGTH))
    until(lambda: own.responses)
    ticks = bench.observer.ticks
    until(lambda: bench.observer.ticks > ticks)
    assert not opener.responses[-1].final
    until(lambda: opener.responses[-1].final)


def test_an_answer_that_ends_after_it_is_cancelled(bench: Bench, opener: FakeClient) -> None:
    """The engine was not told in time."""
    own, other = join(bench, "a"), join(bench, "b")
    bench.responder.stop("all")
    until(lambda: opener.responses[-1].final)
    words = len(opener.responses)
    bench.engine.outputs.put([*bench.say("a", "hi", FinishReason.LENGTH), *bench.say("b", "x")])
    until(lambda: own.errors)
    assert own.errors[0].code is ErrorCode.CANCELLED and not own.responses
    assert not other.errors and len(opener.responses) == words


def test_a_request_may_be_left_alone(bench: Bench, opener: FakeClient) -> None:
    owns = {name: join(bench, name) for name in "ab"}
    owns["b"].cancelled = True
    until(lambda: "b" in bench.engine.aborted)
    assert "a" not in bench.engine.aborted and not opener.responses[-1].final


@pytest.mark.parametrize("how", ["leaves", "stops it", "breaks"])
def test_without_its_client_those_who_answer_there_are_cancelled(
    bench: Bench, opener: FakeClient, how: str
) -> None:
    own = join(bench, "a")
    opener.cancelled, opener.broken = how == "leaves", how == "breaks"
    if how == "stops it":
        bench.responder.stop("all")
    bench.engine.outputs.put(bench.say("a", "hi"))
    until(lambda: bench.engine.aborted == ["a"])
    cancelled = TokenOutput("a", None, finish_reason=FinishReason.CANCELLED)
    bench.engine.outputs.put([cancelled])
    until(lambda: own.errors)
    assert how == "breaks" or opener.responses[-1].final
    with pytest.raises(RequestError, match="no shared stream"):
        join(bench, "b")


def test_nothing_comes_after_what_could_not_be_sent(bench: Bench, opener: FakeClient) -> None:
    owns = {name: join(bench, name) for name in "ab"}
    opener.broken = True
    bench.engine.outputs.put([*bench.say("a", "x", FinishReason.LENGTH), *bench.say("b", "x")])
    until(lambda: owns["a"].errors)
    opener.broken = False
    bench.engine.outputs.put(bench.say("b", "y", FinishReason.LENGTH))
    until(lambda: owns["b"].errors)
    assert [own.errors[0].code for own in owns.values()] == [
        ErrorCode.INTERNAL,
        ErrorCode.CANCELLED,
    ]
    assert not said(opener, "b") and not any(own.responses for own in owns.values())


def test_it_ends_with_the_engine(bench: Bench, opener: FakeClient) -> None:
    bench.close()
    assert opener.responses[-1].final


def test_names(bench: Bench, opener: FakeClient) -> None:
    shared = bench.responder.shared
    with pytest.raises(RequestError, match="needs a request id, which is its name"):
        shared.open("", FakeClient())
    with pytest.raises(RequestError, match="'all' is open already"):
        shared.open("all", FakeClient())
    with pytest.raises(RequestError, match="needs a request id, which tells the answers apart"):
        shared.join("all", "", FakeClient())
    first = shared.join("all", "a", FakeClient())
    with pytest.raises(RequestError, match="'a' is running in 'all'"):
        shared.join("all", "a", FakeClient())
    for _ in range(2):
        first.fail(RequestError(ErrorCode.INTERNAL, "said twice"))
    shared.join("all", "a", FakeClient())


def test_several_answers_of_a_request_are_columns_in_their_order(
    bench: Bench, opener: FakeClient
) -> None:
    client: Client = bench.responder.shared.join("all", "a", FakeClient())
    client.send(JointResponse((Response("x"), Response("y", finish_reason="stop"))))
    bench.responder.shared.flush()
    assert [(part.request_id, part.response.text) for part in opener.responses[-1].parts] == [
        ("a", "x"),
        ("a", "y"),
    ]


def test_the_arrays_have_a_column_for_each() -> None:
    token = TokenOutput("a", 7, -0.5, rank=1)
    parts = (
        SharedPart("a", Response("x", (token, token), num_input_tokens=3), frozenset()),
        SharedPart(
            "ü",
            Response("", (), "stop", 5, queue_time=0.5, prompt=("null", "{}")),
            frozenset(("num_input_tokens", "queue_time", "prompt_logprobs")),
        ),
        SharedPart("c", Response("z", (token,), cumulative_logprob=-0.5), frozenset(("logprobs",))),
    )
    arrays = SharedResponse(parts).arrays(frozenset(), lambda ids: f"<{ids}>")
    found = {name: array.tolist() for name, array in arrays.items()}
    assert found.pop("logprobs")[0][:2] == [b"null", b"null"]
    assert found == {
        "request_id": [[b"a", "ü".encode(), b"c"]],
        "text_output": [[b"x", b"", b"z"]],
        "output_ids": [[7, 7, 7]],
        "finish_reason": [[b"None", b"stop", b"None"]],
        "num_input_tokens": [[3, 5, 0]],
        "num_output_tokens": [[2, 0, 1]],
        "queue_time": [[0.0, 0.5, 0.0]],
        "prompt_logprobs": [[b"[]", b"[null, {}]", b"[]"]],
    }
    assert b"<[7]>" in arrays["logprobs"][0][2]
    assert SharedResponse(()).arrays(frozenset(("logprobs",)), lambda _: "") == {}
