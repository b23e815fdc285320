"""The Hub token of a request: it opens what the server's own cannot, and is never shown."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from multilora.adapters.checkpoint.text import NO_TEXT
from multilora.adapters.naming.source import AdapterSource
from multilora.errors import ErrorCode
from multilora.request import Request
from support.engine.downloads import use_hub
from support.engine.requests import MakeEngine, alone, ask, drain, entry, request
from support.fake.hub import HubServer
from support.tiny.base import write_adapter

TOKEN = "hf_very-secret"
NAME = "org/private"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    write_adapter(tmp_path / "hub" / NAME, seed=6)
    with HubServer(tmp_path / "hub") as server:
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        server.token = TOKEN
        yield server


def named(name: str, token: str = "") -> Request:
    return replace(request(name, NAME), adapter_token=token)


def test_a_private_repository(
    make_engine: MakeEngine, hub: HubServer, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    engine = make_engine(adapter_allow="org/*")
    engine.submit(named("r1"))
    error = drain(engine, 1)["r1"][-1].error
    assert error is not None and error.code is ErrorCode.NOT_FOUND
    answer = alone(engine, [named("r2", TOKEN)])["r2"]  # at once: the failure was another's
    assert len(answer) == 12
    assert alone(engine, [replace(named("r2"), request_id="r3")])["r3"]  # it is in memory
    shown = [str(ask(engine, "list")), str(ask(engine, "info", NAME)), caplog.text]
    assert not any(TOKEN in text for text in shown)


def test_what_has_left_memory_needs_the_token_again(make_engine: MakeEngine, hub: HubServer):
    engine = make_engine(adapter_allow="org/*")
    alone(engine, [named("r1", TOKEN)])
    ask(engine, "unload", NAME)
    engine.submit(named("r2"))
    error = drain(engine, 1)["r2"][-1].error
    assert error is not None and error.code is ErrorCode.NOT_FOUND
    assert len(alone(engine, [named("r3", TOKEN)])["r3"]) == 12


def test_a_wrong_token_harms_nobody_else(make_engine: MakeEngine, hub: HubServer):
    engine = make_engine(adapter_allow="org/*")
    engine.submit(named("r1", "hf_wrong"))
    error = drain(engine, 1)["r1"][-1].error
    assert error is not None and "hf_wrong" not in error.message
    assert len(alone(engine, [named("r2", TOKEN)])["r2"]) == 12


def test_a_chat_template_is_read_with_the_token(make_engine: MakeEngine, hub: HubServer):
    engine = make_engine(adapter_allow="org/*")
    assert engine.admin.text(NAME, 30, TOKEN).result(30) == NO_TEXT


def test_an_administrator_loads_with_a_token(make_engine: MakeEngine, hub: HubServer):
    engine = make_engine(adapter_allow="org/*")
    loaded = ask(engine, "load", "mine", source=NAME, adapter_token=TOKEN)
    assert loaded["state"] == "ready" and TOKEN not in str(loaded)


def test_tokens_are_in_no_repr():
    assert TOKEN not in repr(named("r", TOKEN)) + repr(AdapterSource("a", "org/a", token=TOKEN))


def test_generated_tokens_are_counted(make_engine: MakeEngine):
    engine = make_engine()
    alone(engine, [request("r1", "a", max_tokens=7), request("r2", "a"), request("r3")])
    assert (entry(engine, "a")["tokens"], entry(engine, "b")["tokens"]) == (19, 0)
