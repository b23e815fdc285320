"""Answers with a time limit: one each, whoever gives it."""

import time

import pytest

from multilora.adapters.admin.command import AdminCommand
from multilora.adapters.admin.deadline_futures import DeadlineFutures
from multilora.adapters.merging.recipe import parse_merge
from multilora.errors import ErrorCode, RequestError, cancelled, shutting_down
from support.engine.requests import MakeEngine, alone, request


def test_the_first_answer_counts() -> None:
    answers = DeadlineFutures()
    early, late = (answers.open(60, "a", "it is slow") for _ in range(2))
    early.complete(None, lambda: 1)
    early.complete(cancelled(), lambda: None)
    # another thread is first, between the look and the answer
    late.complete(None, lambda: late.future.set_exception(shutting_down()))
    assert early.future.result() == 1
    assert late.future.exception()
    assert answers.next_deadline is None


def test_an_endless_time_limit_does_not_stop_the_engine(make_engine: MakeEngine) -> None:
    engine = make_engine()
    alone(engine, [request("before")])
    waiting = engine.admin.pending.open(1e300, "a", "it is slow")
    assert len(alone(engine, [request("after")])["after"]) == 12
    time.sleep(0.05)  # the engine thread goes to sleep, for as long as it may
    assert len(alone(engine, [request("later")])["later"]) == 12
    engine.close()
    assert isinstance(waiting.future.exception(timeout=10), RequestError)


def test_a_merge_is_answered_in_time_while_nothing_runs(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    alone(engine, [request("before", "a")])
    time.sleep(0.05)  # the engine thread goes to sleep
    merger = engine.admin._merger
    monkeypatch.setattr(merger, "submit", lambda *_: None)  # one that takes for ever
    recipe = parse_merge({"ids": ["a", "b"]})
    command = AdminCommand("merge", merge=recipe, timeout=0.2)
    error = engine.admin.execute(command, 30).exception(timeout=20)
    assert isinstance(error, RequestError) and error.code is ErrorCode.UNAVAILABLE
    assert "still being merged" in error.message
