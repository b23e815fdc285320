"""What the gateway believes of its Triton server while that dies, goes and comes back."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import tiny_tokenizers
from fake_adapters import FakeAdapters
from multilora_gateway import backend as backend_module
from multilora_gateway import engine_watch
from multilora_gateway.backend import Backend
from multilora_gateway.errors import GatewayError
from multilora_gateway.generation import Call

SECONDS = 20


def description(model_id: str) -> dict[str, Any]:
    numbers = (
        "max_input_tokens", "max_total_tokens", "max_batch_prefill_tokens",
        "max_concurrent_requests", "max_lora_rank", "vocab_size",
    )  # fmt: skip
    return {
        "model_id": model_id, "model_sha": None, "dtype": "float32", "device": "cpu",
        **dict.fromkeys(numbers, 64), "eos_token_ids": [0],
        "tokenizer": {"tokenizer.json": tiny_tokenizers.byte_level().to_str()},
    }  # fmt: skip


@pytest.fixture
def server() -> Iterator[FakeAdapters]:
    server = FakeAdapters(base=description("first"))
    yield server
    server.close()


@asynccontextmanager
async def connected(server: FakeAdapters) -> AsyncIterator[Backend]:
    backend = Backend(server.url)
    try:
        yield backend
    finally:
        await backend.close()


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, SECONDS))


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
            for _ in range(50):
                assert await backend.has_adapter(name) is known
            assert [model for model, *_ in server.received].count("adapters") == 1
            monkeypatch.setattr(backend_module, "_NAME_SECONDS", 0.0)
            assert await backend.has_adapter(name) is known
            assert [model for model, *_ in server.received].count("adapters") == 2

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
                await backend.collect(Call([1]))
            assert caught.value.status == 503 and caught.value.headers["Retry-After"]
            await backend.base()
            assert [model for model, *_ in server.received].count("adapters") == 2

    run(answers())


@pytest.mark.parametrize("adapter_id", ["silent", "adapters"])
def test_whoever_waits_for_a_dead_engine_is_told(
    server: FakeAdapters, monkeypatch: pytest.MonkeyPatch, adapter_id: str
) -> None:
    monkeypatch.setattr(engine_watch, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(engine_watch, "LOOK_SECONDS", 0.05)

    async def errors() -> None:
        async with connected(server) as backend:
            if adapter_id == "silent":
                call = backend.collect(Call([1], "silent"))
            else:
                call = backend.adapters("load", adapter_id="silent")
            waiting = asyncio.ensure_future(call)
            await asyncio.sleep(0.7)
            assert not waiting.done()  # the engine answers when it is asked
            server.ending = True
            await asyncio.sleep(0.5)
            assert not waiting.done()  # a server that ends in order ends what runs
            server.dead = True
            with pytest.raises(GatewayError, match="does not answer any more") as caught:
                await waiting
            assert caught.value.kind == "unavailable"

    run(errors())


def test_leaving_a_silent_answer_is_no_error(server: FakeAdapters) -> None:
    async def leave() -> None:
        async with connected(server) as backend:
            waiting = asyncio.ensure_future(backend.collect(Call([1], "silent")))
            await asyncio.sleep(0.2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    run(leave())
