"""The command `multilora`, run as a process, against a real gRPC server on the loopback."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.fake.triton import PIECES, FakeTriton

CLIENT = Path(__file__).parents[2] / "client"
TEXT = "".join(PIECES) + "\n"


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "multilora_client.cli", *args]


def environ(server: FakeTriton) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CLIENT), "MULTILORA_URL": server.url}


def run(
    server: FakeTriton, *args: str, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args),
        env=environ(server),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("flags", [[], ["--stream"]])
def test_generate(server: FakeTriton, flags: list[str]) -> None:
    done = run(
        server, "generate", *flags, "--adapter", "sql", "--max-tokens", "9", "--stop", "a",
        "--stop", "b", "--temperature", "0.5", "hello",
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, TEXT, "")
    _, _, inputs = server.received[0]
    assert inputs["text_input"] == ["hello"]
    assert inputs["adapter_id"] == ["sql"]
    assert inputs["max_tokens"] == [9]
    assert inputs["stop_words"] == ["a", "b"]
    assert inputs["temperature"] == [0.5]
    assert "top_p" not in inputs and "ignore_eos" not in inputs
    assert ("stream" in inputs) == bool(flags)


def test_a_piped_prompt(server: FakeTriton) -> None:
    assert run(server, "generate", stdin="from\na pipe\n").stdout == TEXT
    assert run(server, "chat", "--system", "be brief", stdin="from a pipe").stdout == TEXT
    (_, _, generated), (_, _, chatted) = server.received
    assert generated["text_input"] == ["from\na pipe"]
    assert json.loads(str(chatted["text_input"][0])) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "from a pipe"},
    ]


def test_a_failed_request_is_one_line_and_exit_code_1(server: FakeTriton) -> None:
    done = run(server, "generate", "--adapter", "NOT_FOUND", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "multilora: no luck: NOT_FOUND\n"


def test_no_server_is_one_line_and_exit_code_1(server: FakeTriton) -> None:
    server.close()
    done = run(server, "generate", "x")
    assert done.returncode == 1
    assert done.stderr.startswith("multilora: no Triton server answers on gRPC at 127.0.0.1:")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [["generate", "--max-tokens", "x", "y"], ["fly"], []])
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    server: FakeTriton, args: list[str]
) -> None:
    done = run(server, *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("multilora") and done.stderr.count("\n") == 1
    assert not server.received


def test_an_interrupt_cancels_the_request(server: FakeTriton) -> None:
    with subprocess.Popen(
        command("generate", "--stream", "--adapter", "endless", "x"),
        env=environ(server),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == "more "
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()  # one that hangs must not take the other tests with it
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert server.wait_until_stopped(server.received[0][1])


def test_a_reader_that_leaves_cancels_the_request(server: FakeTriton) -> None:
    with subprocess.Popen(
        command("generate", "--stream", "--adapter", "endless", "x"),
        env=environ(server),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
    assert server.wait_until_stopped(server.received[0][1])


def test_an_interactive_chat_remembers_its_turns(server: FakeTriton) -> None:
    user, terminal = pty.openpty()
    os.write(user, b"one\n\n \ntwo\n\x04")
    done = subprocess.run(
        command("chat", "--adapter", "sql"),
        env=environ(server),
        stdin=terminal,
        capture_output=True,
        timeout=60,
    )
    os.close(terminal)
    os.close(user)
    assert done.returncode == 0
    first, second = (json.loads(str(inputs["text_input"][0])) for _, _, inputs in server.received)
    assert first == [{"role": "user", "content": "one"}]
    assert second == [
        *first,
        {"role": "assistant", "content": "".join(PIECES)},
        {"role": "user", "content": "two"},
    ]
    assert server.received[0][2]["max_tokens"] == [256]
