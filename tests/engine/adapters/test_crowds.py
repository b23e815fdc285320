"""Many adapters, many threads, many changes at once: what they cost, and what they leave behind."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from multilora.adapters.memory.state import AdapterState, AdapterStates
from multilora.adapters.naming.source import AdapterSource
from multilora.adapters.naming.watch import FolderChanges
from multilora.errors import ErrorCode, RequestError
from multilora.request import FinishReason
from multilora_api.admin import Origin
from support.engine.requests import MakeEngine, alone, ask, assert_all_free, drain, request
from support.tiny.base import write_adapter


def test_ten_thousand_unknown_adapters_leave_nothing_behind(
    make_engine: MakeEngine, tmp_path: Path
):
    engine = make_engine(adapters_dir=str(tmp_path))
    states = len(engine._parts.adapters.states)
    for number in range(10_000):
        with pytest.raises(RequestError):
            engine.submit(request("r", f"missing{number}", length=1, max_tokens=1))
    assert len(engine._parts.adapters.states) == states
    assert len(alone(engine, [request("r", "a")])["r"]) == 12


def test_a_removed_folder_ends_who_waits_and_lets_who_runs_finish(
    make_engine: MakeEngine, tmp_path: Path
):
    write_adapter(tmp_path / "x", seed=4, rank=16)
    engine = make_engine(adapters_dir=str(tmp_path), max_running_requests=1)
    engine.submit(request("runs", "x", max_tokens=200))
    engine.submit(request("waits", "x", max_tokens=200))
    engine.outputs.get(timeout=10)
    shutil.rmtree(tmp_path / "x")
    engine.admin.folders_changed(FolderChanges((), (), ("x",)))
    outputs = drain(engine, 2)
    assert outputs["runs"][-1].finish_reason is FinishReason.LENGTH
    error = outputs["waits"][-1].error
    assert error is not None and error.code is ErrorCode.NOT_FOUND and "removed" in error.message
    assert_all_free(engine)


def test_commands_from_many_threads_while_requests_run(make_engine: MakeEngine):
    engine = make_engine()
    failures: list[BaseException] = []

    def administrate(number: int) -> None:
        try:
            for turn in range(20):
                ask(engine, ("list", "info", "load", "pin", "unpin")[turn % 5], "abc"[number])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=administrate, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    answers = [alone(engine, [request("r", name)])["r"] for name in "abcabc"]
    for thread in threads:
        thread.join(60)
    assert not failures
    assert answers[:3] == answers[3:]
    assert_all_free(engine)


def test_a_request_beside_very_many_pinned_adapters_costs_nothing():
    """The states are searched for what may be forgotten only now and then."""
    states, searches = AdapterStates(), 0

    def keep() -> set[str]:
        nonlocal searches
        searches += 1
        return set()

    for number in range(20_000):
        state = AdapterState(AdapterSource(f"x{number}", "/nowhere"), pinned=True)
        states[state.adapter_id] = state
        states.forget(keep)
    assert (len(states), searches) == (20_000, 2)


def test_thousands_of_folders_replaced_at_once_hold_nothing_up(
    make_engine: MakeEngine, tmp_path: Path
):
    engine = make_engine(adapters_dir=str(tmp_path))
    names = tuple(f"x{number}" for number in range(5000))
    for name in names:
        location = str(tmp_path / name)
        engine._parts.adapters.register(AdapterSource(name, location, origin=Origin.DIRECTORY))
    start = time.thread_time()
    engine.admin._follow({str(tmp_path / name) for name in names}, set())
    assert time.thread_time() - start < 0.3
