"""Processes that answer lines: what ends them, what replaces them, and that none is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from multilora_sandbox.pool import Broken, Ending, PoolClosed, ProcessPool
from support.processes import assert_end, is_alive

PROGRAM = """
import ctypes, os, signal, sys, time
from multilora_sandbox.worker import serve

def prepare(setup):
    if setup == "dies":
        sys.exit(3)

    def answer(question):
        return eval(question)

    return answer

serve(prepare, 0.3, 64 << 20)
"""  # a question is a Python expression


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ProcessPool]]:
    (tmp_path / "answering.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path))
    pools: list[ProcessPool] = []

    def make(setup: Any = None) -> ProcessPool:
        pools.append(ProcessPool("answering", lambda: setup))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def pool(make: Callable[..., ProcessPool]) -> ProcessPool:
    return make()


def ask(pool: ProcessPool, question: str, seconds: float = 20.0) -> Any:
    return pool.ask(question.encode(), seconds)


def is_there(process_id: int) -> bool:
    """Also as a zombie, when nobody has asked how it ended."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_process_answers_one_question_after_the_other(pool: ProcessPool) -> None:
    process_id = ask(pool, "os.getpid()")
    assert process_id != os.getpid() and ask(pool, "os.getpid()") == process_id
    text = "é\n\ud83d" * 400_000  # more than a socket holds at a time
    assert ask(pool, repr(text).replace("\ud83d", "\\ud83d")) == text


@pytest.mark.parametrize(
    ("question", "ending"),
    [
        ("sum(iter(int, 1))", Ending.TIME),
        ("10 ** 10 ** 9", Ending.TIME),  # no bytecode runs meanwhile
        ("'a' * (1 << 30)", Ending.MEMORY),
        ("ctypes.string_at(0)", Ending.CRASH),
        ("1 / 0", Ending.CRASH),
        ("os.kill(os.getpid(), signal.SIGKILL)", Ending.OUTSIDE),  # also the new one
    ],
)
def test_what_breaks_a_limit_ends_its_process_alone(
    pool: ProcessPool, question: str, ending: Ending
) -> None:
    first, begin = ask(pool, "os.getpid()"), time.monotonic()
    with pytest.raises(Broken) as caught:
        ask(pool, question, 60)
    assert caught.value.ending is ending and time.monotonic() - begin < 30
    assert not is_there(first)
    assert ask(pool, "1 + 1") == 2


def test_a_process_that_stands_still_is_ended(pool: ProcessPool) -> None:
    begin = time.monotonic()
    with pytest.raises(Broken) as caught:
        ask(pool, "time.sleep(60)", 0.2)
    assert caught.value.ending is Ending.TIME
    os.kill(ask(pool, "os.getpid()"), signal.SIGSTOP)
    with pytest.raises(Broken) as caught:
        ask(pool, "'a'" + " " * 4_000_000, 0.2)  # nobody reads the question
    assert caught.value.ending is Ending.TIME
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("when", ["idle", "at work"])
def test_a_process_that_somebody_kills_costs_no_error(pool: ProcessPool, when: str) -> None:
    first = ask(pool, "os.getpid()")
    question = "(time.sleep(0.3), os.getpid())[1]"
    killer = threading.Timer(0.0 if when == "idle" else 0.1, os.kill, (first, signal.SIGKILL))
    killer.start()
    if when == "idle":
        killer.join()
    second = ask(pool, question)
    killer.join()
    assert second != first and ask(pool, "os.getpid()") == second


def test_a_process_that_has_grown_is_replaced_without_an_error(pool: ProcessPool) -> None:
    first = ask(pool, "os.getpid()")
    assert ask(pool, "setattr(os, 'kept', bytearray(40 << 20))") is None
    assert ask(pool, "len(bytearray(40 << 20))") == 40 << 20
    assert ask(pool, "os.getpid()") != first


def test_time_and_memory_are_those_of_one_question(pool: ProcessPool) -> None:
    """Five times 0.1 s and 40 MiB are more than one question may take."""
    work = (
        "(len(bytearray(40 << 20)), sum(1 for _ in iter(lambda: time.process_time() - T < 0.2, 0)))"
    )
    process_ids = set()
    for _ in range(5):
        assert ask(pool, f"(lambda T: {work})(time.process_time())")[0] == 40 << 20
        process_ids.add(ask(pool, "os.getpid()"))
    assert len(process_ids) == 1


def test_as_many_processes_as_questions_at_a_time(pool: ProcessPool) -> None:
    found: list[int] = []
    question = "(time.sleep(0.3), os.getpid())[1]"
    threads = [threading.Thread(target=lambda: found.append(ask(pool, question))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 2
    assert {ask(pool, "os.getpid()") for _ in range(4)} <= set(found)


def test_closing_ends_all(pool: ProcessPool) -> None:
    idle = ask(pool, "os.getpid()")
    errors: list[type] = []

    def work() -> None:
        try:
            ask(pool, "time.sleep(60)", 60)
        except PoolClosed as error:
            errors.append(type(error))

    threads = [threading.Thread(target=work) for _ in "ab"]
    for thread in threads:
        thread.start()
    while len(pool._all) < 2 or pool._idle:
        time.sleep(0.01)
    processes = [process._process.pid for process in pool._all]
    pool.close()
    for thread in threads:
        thread.join(20)
    assert errors == [PoolClosed, PoolClosed]
    assert idle in processes and not any(map(is_there, processes))
    with pytest.raises(PoolClosed):
        ask(pool, "1")


def test_a_program_that_does_not_start_is_an_error(make: Callable[..., ProcessPool]) -> None:
    with pytest.raises(OSError, match="answering does not start"):
        ask(make("dies"), "1")


def test_a_process_knows_no_secrets_and_hears_no_ctrl_c(
    pool: ProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in ask(pool, "str(dict(os.environ))")
    assert ask(pool, "os.getpgid(0)") == ask(pool, "os.getpid()") != os.getpgid(0)


def test_a_process_gives_way_to_the_one_that_asks(pool: ProcessPool) -> None:
    assert ask(pool, "os.nice(0)") == min(os.nice(0) + 5, 19)


@pytest.mark.parametrize("question", ["1", "sum(iter(int, 1))"], ids=["idle", "at work"])
def test_a_process_ends_with_its_parent(
    tmp_path: Path, make: Callable[..., ProcessPool], question: str
) -> None:
    program = f"""
import os, sys, threading
sys.path[:] = {sys.path!r}
from multilora_sandbox.pool import ProcessPool
pool = ProcessPool("answering")
print(pool.ask(b"os.getpid()", 20), flush=True)
threading.Thread(target=pool.ask, args=({question.encode()!r}, 20), daemon=True).start()
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdin and parent.stdout
    with parent.stdin, parent.stdout:
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
        parent.wait()
    assert_end(child, seconds=20)
