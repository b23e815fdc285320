"""The Python client and the command line against a real Triton server."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from launcher.triton.server import TritonServer
from multilora_client import (
    AsyncMultiLoRAClient,
    InvalidRequest,
    Message,
    MultiLoRAClient,
    NotFound,
    TimedOut,
)
from support.e2e.triton import Example, metrics, wait_until_idle

MAX_TOKENS = 200
LONG = 900  # tokens nobody waits for


@pytest.fixture
def client(server: TritonServer) -> Iterator[MultiLoRAClient]:
    with MultiLoRAClient(server.grpc_address, timeout=60) as client:
        yield client


def assert_cancelled(server: TritonServer, before: dict[str, float]) -> None:
    """Of the LONG answer begun after `before`, the end was never generated."""
    wait_until_idle(server)
    name = "multilora_generated_tokens_total"
    assert metrics(server)[name] - before[name] < 0.9 * LONG


def settled(server: TritonServer) -> dict[str, float]:
    wait_until_idle(server)
    return metrics(server)


def command(server: TritonServer, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "multilora_client.cli", *args],
        env={**os.environ, "MULTILORA_URL": server.grpc_address},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_merge_and_a_grammar(client: MultiLoRAClient) -> None:
    merged = client.adapters.merge({"upper": 1.0, "sql": 0.0})
    assert client.generate("hello world", adapter_id=merged.id).text == "HELLO WORLD"
    grammar = {"type": "regex", "value": "(?:ab){3}"}
    assert client.generate("hello world", adapter_id=merged.id, grammar=grammar).text == "ababab"


def test_all_examples_at_once(client: MultiLoRAClient, demo: list[Example]) -> None:
    def ask(example: Example) -> str:
        stream = client.stream(example.prompt, adapter_id=example.adapter_id, max_tokens=MAX_TOKENS)
        text = "".join(stream)
        assert stream.result.text == text
        assert stream.result.finish_reason == "stop"
        assert stream.result.num_output_tokens > 1
        return text

    with ThreadPoolExecutor(len(demo)) as threads:
        assert list(threads.map(ask, demo)) == [example.answer for example in demo]


def test_generate_and_chat(client: MultiLoRAClient, demo: list[Example]) -> None:
    example = next(example for example in demo if example.adapter_id == "upper")
    text = client.generate(example.prompt, adapter_id="upper", max_tokens=MAX_TOKENS)
    messages: list[Message] = [{"role": "user", "content": example.prompt}]
    chat = client.chat(messages, adapter_id="upper", max_tokens=MAX_TOKENS)
    assert text == chat
    assert text.text == example.answer
    cut = client.generate(example.prompt, adapter_id="upper", max_tokens=3)
    assert (cut.finish_reason, cut.num_output_tokens) == ("length", 3)


def test_async(server: TritonServer, demo: list[Example]) -> None:
    async def run() -> list[str]:
        async with AsyncMultiLoRAClient(server.grpc_address, timeout=60) as client:
            answers = await asyncio.gather(
                *(
                    client.generate(e.prompt, adapter_id=e.adapter_id, max_tokens=MAX_TOKENS)
                    for e in demo
                )
            )
            return [answer.text for answer in answers]

    assert asyncio.run(run()) == [example.answer for example in demo]


def test_errors_have_types_and_the_client_survives_many(
    client: MultiLoRAClient, demo: list[Example]
) -> None:
    def fail(_: int) -> None:
        with pytest.raises(NotFound, match=r"^adapter 'nobody' is not known"):
            client.generate("x", adapter_id="nobody")
        with pytest.raises(InvalidRequest, match=r"^temperature must be"):
            client.generate("x", temperature=-1.0)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(fail, range(24)))
    first = demo[0]
    answer = client.generate(first.prompt, adapter_id=first.adapter_id, max_tokens=MAX_TOKENS)
    assert answer.text == first.answer


def test_closing_a_stream_stops_the_server(server: TritonServer, client: MultiLoRAClient) -> None:
    before = settled(server)
    with client.stream("hello", max_tokens=LONG, ignore_eos=True) as stream:
        next(stream)
    assert_cancelled(server, before)


def test_a_timeout_stops_the_server(server: TritonServer, client: MultiLoRAClient) -> None:
    before = settled(server)
    with pytest.raises(TimedOut):
        client.generate("hello", max_tokens=LONG, ignore_eos=True, timeout=0.2)
    assert_cancelled(server, before)


def test_cancelling_a_task_stops_the_server(server: TritonServer) -> None:
    async def run() -> None:
        async with AsyncMultiLoRAClient(server.grpc_address) as client:
            with pytest.raises(asyncio.TimeoutError):
                request = client.generate("hello", max_tokens=LONG, ignore_eos=True)
                await asyncio.wait_for(request, 0.2)

    before = settled(server)
    asyncio.run(run())
    assert_cancelled(server, before)


@pytest.mark.parametrize("verb", [["generate"], ["generate", "--stream"], ["chat"]])
def test_command_line(server: TritonServer, demo: list[Example], verb: list[str]) -> None:
    example = next(example for example in demo if example.adapter_id == "emoji")
    with command(
        server, *verb, "--adapter", "emoji", "--max-tokens", str(MAX_TOKENS), example.prompt
    ) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, example.answer + "\n", "")


def test_command_line_error(server: TritonServer) -> None:
    with command(server, "generate", "--adapter", "nobody", "x") as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert errors.startswith("multilora: adapter 'nobody' is not known")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_ending_the_command_line_stops_the_server(
    server: TritonServer, number: signal.Signals, code: int
) -> None:
    before = settled(server)
    arguments = ["--max-tokens", str(LONG), "--ignore-eos"]
    with command(server, "generate", "--stream", *arguments, "hello") as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == code
    assert_cancelled(server, before)
