"""MultiLoRAClient against a real gRPC server on the loopback."""

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest

from multilora_client import (
    Cancelled,
    Generation,
    InvalidRequest,
    MultiLoRAClient,
    MultiLoRAError,
    NotFound,
    TimedOut,
    Unavailable,
)
from support.fake.triton import PIECES, FakeTriton

ANSWER = Generation("".join(PIECES), "stop", 7, 3)


def test_generate_returns_the_whole_answer(server: FakeTriton) -> None:
    with MultiLoRAClient(server.url) as client:
        answer = client.generate("hello", adapter_id="sql", max_tokens=9)
    assert answer == ANSWER
    assert str(answer) == "".join(PIECES)
    (model, _, inputs), *more = server.received
    assert not more, "a finished request needs no stop"
    assert model == "multilora_llm"
    assert inputs["text_input"] == ["hello"]
    assert inputs["adapter_id"] == ["sql"]
    assert inputs["max_tokens"] == [9]
    assert "stream" not in inputs


def test_stream_yields_pieces_then_a_result(server: FakeTriton) -> None:
    with MultiLoRAClient(server.url) as client:
        stream = client.stream("hello")
        assert list(stream) == list(PIECES)
        assert stream.result == ANSWER
    assert len(server.received) == 1


def test_chat_sends_messages(server: FakeTriton) -> None:
    with MultiLoRAClient(server.url) as client:
        assert client.chat([{"role": "user", "content": "hi"}]) == ANSWER
        assert list(client.stream([{"role": "user", "content": "hi"}])) == list(PIECES)
    assert all(inputs["chat"] == [True] for _, _, inputs in server.received)


def test_many_streams_at_once_on_one_client(server: FakeTriton) -> None:
    with MultiLoRAClient(server.url) as client, ThreadPoolExecutor(4) as threads:
        answers = threads.map(lambda _: client.generate("x", adapter_id="together"), range(4))
        assert list(answers) == [ANSWER] * 4


def test_streams_of_one_thread_may_interleave(server: FakeTriton) -> None:
    with MultiLoRAClient(server.url) as client:
        streams = [client.stream("x", adapter_id="together") for _ in range(4)]
        assert list(zip(*streams, strict=True)) == [(piece,) * 4 for piece in PIECES]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARG", InvalidRequest),
        ("NOT_FOUND", NotFound),
        ("UNAVAILABLE", Unavailable),
        ("CANCELLED", Cancelled),
        ("INTERNAL", MultiLoRAError),
    ],
)
def test_an_error_keeps_its_code_and_message(
    server: FakeTriton, code: str, kind: type[MultiLoRAError]
) -> None:
    with MultiLoRAClient(server.url) as client:
        with pytest.raises(kind) as caught:
            client.generate("x", adapter_id=code)
        assert caught.value.message == f"no luck:\n{code}"
        assert caught.value.code == code.replace("INVALID_ARG", "INVALID_ARGUMENT")
        assert type(caught.value) is kind
        assert client.generate("x") == ANSWER, "the client goes on"


def test_an_unknown_model_is_not_found(server: FakeTriton) -> None:
    with (
        MultiLoRAClient(server.url, model="nothing") as client,
        pytest.raises(NotFound, match="unknown model: 'nothing'"),
    ):
        client.generate("x")


def test_closing_a_stream_stops_its_request(server: FakeTriton) -> None:
    with MultiLoRAClient(server.url) as client:
        stream = client.stream("x", adapter_id="endless")
        assert next(stream) == "more "
        stream.close()
        stream.close()
        assert server.wait_until_stopped(stream.request_id)
    stops = [(model, inputs) for model, _, inputs in server.received if "stop" in inputs]
    assert stops == [("multilora_llm", {"stop": [True]})]


def test_a_dropped_stream_stops_its_request(server: FakeTriton) -> None:
    with MultiLoRAClient(server.url) as client:
        for _ in client.stream("x", adapter_id="endless"):
            break
        gc.collect()
        assert server.wait_until_stopped(server.received[0][1])


def test_closing_the_client_stops_what_runs(server: FakeTriton) -> None:
    with MultiLoRAClient(server.url) as client:
        stream = client.stream("x", adapter_id="endless")
        next(stream)
    assert server.wait_until_stopped(stream.request_id)


def test_a_timeout_stops_the_request(server: FakeTriton) -> None:
    with MultiLoRAClient(server.url, timeout=0.2) as client:
        with pytest.raises(TimedOut, match="longer timeout"):
            client.generate("x", adapter_id="silent")
        assert server.wait_until_stopped(server.received[0][1])


def test_a_truncated_answer_is_an_error(server: FakeTriton) -> None:
    with (
        MultiLoRAClient(server.url) as client,
        pytest.raises(MultiLoRAError, match="before the answer ended"),
    ):
        client.generate("x", adapter_id="truncated")


def test_no_server_is_said_clearly(server: FakeTriton) -> None:
    server.close()
    with (
        MultiLoRAClient(server.url) as client,
        pytest.raises(Unavailable, match=f"no Triton server answers on gRPC at {server.url}"),
    ):
        client.generate("x")
