"""What the gateway believes of its Triton server while that dies, goes and comes back."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from multilora_gateway.backend import client as backend_module
from multilora_gateway.backend.messages import GenerationRequest
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import GatewayError
from multilora_gateway.generation.parallel import results
from support.fake.adapters import FakeAdapters
from support.gateway.backend import connected, description, run


@pytest.fixture
def server() -> Iterator[FakeAdapters]:
    server = FakeAdapters(base=description("first"))
    yield server
    server.close()


def descriptions(server: FakeAdapters) -> int:
    """How often its base was asked for."""
    return sum(inputs.get("action") == ["describe"] for _, _, inputs in server.received)


def test_another_model_at_the_same_address_is_noticed_without_a_request(
    server: FakeAdapters,
) -> None:
    async def models() -> list[str]:
        async with connected(server) as backend:
            found = [(await backend.base()).model_id]
            await asyncio.to_thread(server.close)
            port = int(server.url.rpartition(":")[2])
            second = FakeAdapters(port, description("second"))
            try:
                await asyncio.sleep(0.5)
                found.append((await backend.base()).model_id)
            finally:
                await asyncio.to_thread(second.close)
            return found

    assert run(models()) == ["first", "second"]


def test_a_server_that_is_back_is_found_within_seconds(server: FakeAdapters) -> None:
    async def seconds() -> float:
        async with connected(server) as backend:
            assert await backend.is_ready()
            await asyncio.to_thread(server.close)
            for _ in range(10):
                assert not await backend.is_ready()
                await asyncio.sleep(0.1)
            second = FakeAdapters(int(server.url.rpartition(":")[2]))
            began = time.monotonic()
            while not await backend.is_ready():
                await asyncio.sleep(0.05)
            took = time.monotonic() - began
            await asyncio.to_thread(second.close)
            return took

    assert run(seconds()) < 3


def test_one_question_for_all_who_ask_for_the_base(server: FakeAdapters) -> None:
    async def bases() -> Any:
        async with connected(server) as backend:
            return await asyncio.gather(*(backend.base() for _ in range(8)))

    assert len({id(base) for base in run(bases())}) == 1
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("name", "known"),
    [("sql", True), ("NOT_FOUND", False), ("INVALID_ARG", False), ("allowed", False)],
)
def test_a_name_is_asked_for_once_in_seconds(
    server: FakeAdapters, monkeypatch: pytest.MonkeyPatch, name: str, known: bool
) -> None:
    async def answers() -> None:
        async with connected(server) as backend:
            assert await backend.is_ready()
            asked = len(server.received)
            for _ in range(50):
                assert await backend.has_adapter(name) is known
            assert len(server.received) == asked + 1
            monkeypatch.setattr(backend_module, "_NAME_SECONDS", 0.0)
            assert await backend.has_adapter(name) is known
            assert len(server.received) == asked + 2

    run(answers())


def test_an_unreadable_description_is_asked_for_again() -> None:
    server = FakeAdapters(base={"colour": "blue"})

    async def errors() -> None:
        async with connected(server) as backend:
            for _ in range(2):
                with pytest.raises(GatewayError, match="run both in the same version"):
                    await backend.base()

    run(errors())
    server.close()
    assert len(server.received) == 2


def test_a_server_whose_engine_died_is_not_ready(server: FakeAdapters) -> None:
    async def answers() -> None:
        async with connected(server) as backend:
            await backend.base()
            assert await backend.is_ready()
            server.dead = True
            assert not await backend.is_ready()
            with pytest.raises(GatewayError, match="restart the Triton server") as caught:
                await results(backend, [GenerationRequest([1])])
            assert caught.value.status == 503 and caught.value.headers["Retry-After"]
            with pytest.raises(GatewayError, match="restart the Triton server"):
                await backend.base()
            server.dead = False
            await backend.base()
            assert descriptions(server) == 2

    run(answers())


def test_who_is_refused_by_the_engine_comes_again_in_turn() -> None:
    """Other clients of the server may have taken the places."""
    server = FakeAdapters(base={**description("base"), "max_concurrent_requests": 2})

    async def refusals() -> list[tuple[int, str]]:
        async with connected(server) as backend:
            await backend.base()
            found: list[tuple[int, str]] = []
            for _ in range(3):
                with pytest.raises(GatewayError) as caught:
                    await results(backend, [GenerationRequest([1], "full")])
                found.append((caught.value.status, caught.value.headers["Retry-After"]))
            return found

    assert run(refusals()) == [(429, "2"), (429, "3"), (429, "4")]
    server.close()


def test_what_is_wrong_with_an_adapter_leaves_the_base_known(server: FakeAdapters) -> None:
    async def answers() -> None:
        async with connected(server) as backend:
            await backend.base()
            await backend.templates("a")
            for failing in (
                results(backend, [GenerationRequest([1], "UNAVAILABLE")]),
                backend.adapters("load", adapter_id="UNAVAILABLE"),
            ):
                with pytest.raises(GatewayError, match="no luck") as caught:
                    await failing
                assert caught.value.status == 503
            await backend.base()
            await backend.templates("a")
        asked = [inputs["action"] for model, _, inputs in server.received if model == "adapters"]
        assert asked == [["describe"], ["template"], ["load"]]

    run(answers())


def test_a_big_vocabulary_holds_up_nobody(
    server: FakeAdapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, threads = ServedModel.from_json, list[threading.Thread]()

    def noted(values: Any) -> ServedModel:
        threads.append(threading.current_thread())
        return read(values)

    monkeypatch.setattr(ServedModel, "from_json", noted)

    async def base() -> None:
        async with connected(server) as backend:
            await backend.base()

    run(base())
    assert threads and threading.current_thread() not in threads


def test_the_connection_is_followed_after_a_failure(
    server: FakeAdapters, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend_module, "_AGAIN_SECONDS", 0.1)

    async def models() -> list[str]:
        async with connected(server) as backend:
            forget, failures = backend._forget, [RuntimeError("odd")]

            def failing() -> None:
                if failures:
                    raise failures.pop()
                forget()

            monkeypatch.setattr(backend, "_forget", failing)
            await asyncio.sleep(0.5)
            found = [(await backend.base()).model_id]
            await asyncio.to_thread(server.close)
            second = FakeAdapters(int(server.url.rpartition(":")[2]), description("second"))
            await asyncio.sleep(0.5)
            found.append((await backend.base()).model_id)
            await asyncio.to_thread(second.close)
            return found

    assert run(models()) == ["first", "second"]
    assert "odd" in caplog.text


def test_an_action_goes_with_the_admin_key_and_on_without_its_client(server: FakeAdapters) -> None:
    async def leave() -> None:
        async with connected(server, "key") as backend:
            asked = asyncio.create_task(backend.adapters("load", adapter_id="silent"))
            while not server.received:
                await asyncio.sleep(0.01)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await asyncio.sleep(0.3)
            assert server.cancelled == 0, "the Triton server may lose a stream that is cancelled"
            await asyncio.to_thread(server.close)

    run(leave())
    assert server.received[0][2]["admin_key"] == ["key"]
