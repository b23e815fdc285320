"""The synchronous client is the asyncio one whose coroutines block."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from multilora_client import (
    Adapters,
    AsyncAdapters,
    AsyncMultiLoRAClient,
    Generation,
    MultiLoRAClient,
    TextStream,
)
from multilora_client.blocking import run
from support.fake.triton import PIECES, FakeTriton


def public(kind: type) -> dict[str, Callable[..., Any]]:
    return {n: member for n, member in vars(kind).items() if n[0] != "_" and callable(member)}


def test_a_coroutine_that_would_wait_is_refused_and_closed() -> None:
    ended: list[bool] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            ended.append(True)

    with pytest.raises(RuntimeError, match="waits for an event loop"):
        run(wait())
    assert ended == [True]


@pytest.mark.parametrize(
    ("blocking", "awaited"),
    [(MultiLoRAClient, AsyncMultiLoRAClient), (Adapters, AsyncAdapters)],
)
def test_both_clients_have_the_same_methods(blocking: type, awaited: type) -> None:
    assert public(blocking).keys() == public(awaited).keys()
    for name, method in public(blocking).items():
        ours, theirs = inspect.signature(method), inspect.signature(public(awaited)[name])
        assert ours.parameters == theirs.parameters
        assert not inspect.iscoroutinefunction(inspect.unwrap(method))
        if name != "stream":
            assert ours == theirs
            assert method.__name__ == name and method.__doc__ == public(awaited)[name].__doc__


def test_an_instance_tells_its_parameters() -> None:
    assert inspect.signature(MultiLoRAClient) == inspect.signature(AsyncMultiLoRAClient)
    returned = inspect.signature(MultiLoRAClient.stream).return_annotation
    assert returned in (TextStream, "TextStream")


def test_it_works_inside_an_event_loop(server: FakeTriton) -> None:
    async def blocked() -> tuple[Generation, list[str]]:
        with MultiLoRAClient(server.url) as client:
            return client.generate("x"), list(client.stream("x"))

    assert asyncio.run(blocked()) == (Generation("".join(PIECES), "stop", 7, 3), list(PIECES))


def test_closing_the_client_stops_every_stream(server: FakeTriton) -> None:
    with MultiLoRAClient(server.url) as client:
        streams = [client.stream("x", adapter_id="endless") for _ in range(3)]
        assert [next(stream) for stream in streams] == ["more "] * 3
    assert all(server.wait_until_stopped(stream.request_id) for stream in streams)


def test_a_closed_client_may_be_asked_to_stop(server: FakeTriton) -> None:
    client = MultiLoRAClient(server.url)
    client.close()
    client.cancel("nothing")
    client.close()
    assert not server.received
