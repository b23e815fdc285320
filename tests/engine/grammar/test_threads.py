"""Threads that compile: everything submitted runs, only so much may wait."""

import threading

import pytest

from multilora.errors import ErrorCode, RequestError
from multilora.grammar.threads import GrammarThreads


def test_only_so_many_may_wait() -> None:
    threads = GrammarThreads(3)
    go_on, done = threading.Event(), threading.Semaphore(0)
    before = threading.stack_size()

    def work() -> None:
        go_on.wait(10)
        done.release()

    for _ in range(3):
        threads.submit(work)
    with pytest.raises(RequestError, match="--max-concurrent-requests") as caught:
        threads.submit(work)
    assert caught.value.code is ErrorCode.UNAVAILABLE
    go_on.set()
    assert all(done.acquire(timeout=10) for _ in range(3))
    threads.close()
    assert threading.stack_size() == before


def test_what_waits_runs_before_the_end() -> None:
    threads = GrammarThreads(100)
    ran: list[int] = []
    for number in range(100):
        threads.submit(lambda number=number: ran.append(number))
    threads.close()
    assert sorted(ran) == list(range(100))


def test_one_that_hangs_does_not_keep_the_server_from_stopping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("multilora.grammar.threads._CLOSE_SECONDS", 0.05)
    threads, go_on, ended = GrammarThreads(2), threading.Event(), threading.Event()

    def work() -> None:
        go_on.wait(30)
        ended.set()

    threads.submit(work)
    threads.close()
    assert not ended.is_set()
    go_on.set()
