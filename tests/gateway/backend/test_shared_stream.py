"""Generations through the shared stream of a gateway: opened when needed, and once more."""

import asyncio
from collections.abc import Iterator

import pytest

from multilora_gateway.backend import shared_stream
from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.messages import GenerationRequest
from multilora_gateway.errors import GatewayError
from support.fake.adapters import FakeAdapters
from support.fake.triton import PIECES
from support.gateway.backend import connected, description, run


@pytest.fixture
def server() -> Iterator[FakeAdapters]:
    server = FakeAdapters(base=description("base"))
    yield server
    server.close()


async def text(backend: Backend, adapter_id: str = "") -> str:
    return "".join(
        [delta.text async for delta in backend.generate(GenerationRequest([1], adapter_id))]
    )


def opened(server: FakeAdapters) -> int:
    return sum("open_shared_stream" in inputs for _, _, inputs in server.received)


def test_one_for_all_generations(server: FakeAdapters) -> None:
    async def texts() -> str:
        async with connected(server) as backend:
            found = await asyncio.gather(*(text(backend) for _ in range(4)))
            assert found == ["".join(PIECES)] * 4
            assert opened(server) == 1
            assert backend._shared and not backend._shared._streams, "nobody is remembered"
            return backend._shared.name

    name = run(texts())
    assert [(name, inputs) for _, name, inputs in server.received][-1] == (name, {"stop": [True]})


def test_it_is_opened_again_once_it_ended(server: FakeAdapters) -> None:
    async def texts() -> None:
        async with connected(server) as backend:
            assert await text(backend) == "".join(PIECES)
            server.end_shared_streams()
            await asyncio.sleep(0.3)
            assert await text(backend) == "".join(PIECES)
            assert opened(server) == 2

    run(texts())


def test_a_request_that_comes_too_late_to_it_is_sent_again(server: FakeAdapters) -> None:
    async def texts() -> None:
        async with connected(server) as backend:
            assert await text(backend) == "".join(PIECES)
            server._shared.clear()  # the engine has ended it, and the gateway has not heard of it
            found = await asyncio.gather(*(text(backend) for _ in range(8)))
            assert found == ["".join(PIECES)] * 8
            assert opened(server) == 2, "all who came too late share the next one"
        asked = [name for _, name, inputs in server.received if "shared_stream" in inputs]
        assert len(asked) == len({*asked}) == 1 + 2 * 8, "they were sent twice"

    run(texts())


def test_one_that_is_never_open_is_given_up(server: FakeAdapters) -> None:
    async def errors() -> None:
        async with connected(server) as backend:
            server.forgetful = True
            with pytest.raises(GatewayError, match="no shared stream is open") as caught:
                await text(backend)
            assert caught.value.status == 503 and opened(server) == 4

    run(errors())


def test_errors_come_by_the_requests_own_way(server: FakeAdapters) -> None:
    async def errors() -> None:
        async with connected(server) as backend:
            with pytest.raises(GatewayError, match="no luck") as caught:
                await text(backend, "INVALID_ARG")
            assert caught.value.status == 422
            assert await text(backend) == "".join(PIECES)
            assert opened(server) == 1

    run(errors())


def test_a_dead_engine_ends_all(server: FakeAdapters) -> None:
    async def errors() -> None:
        async with connected(server) as backend:
            running = [asyncio.create_task(text(backend, "silent")) for _ in range(2)]
            while len(server.received) < 3:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(server.close)
            for task in running:
                with pytest.raises(GatewayError) as caught:
                    await task
                assert caught.value.status == 503

    run(errors())


def test_what_cannot_be_read_is_told_and_the_call_read_on(
    server: FakeAdapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Triton server may lose a call that nobody reads."""

    async def errors() -> None:
        async with connected(server) as backend:
            assert await text(backend) == "".join(PIECES)
            broken = backend._shared
            monkeypatch.setattr(shared_stream, "columns", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await text(backend)
            monkeypatch.undo()
            assert await text(backend) == "".join(PIECES)
            assert opened(server) == 2 and broken and not broken._reader.done()
            server.end_shared_streams()
            await asyncio.wait_for(broken._reader, 5)

    run(errors())


def test_an_answer_without_an_end_is_an_error(server: FakeAdapters) -> None:
    async def errors() -> None:
        async with connected(server) as backend:
            asked = asyncio.create_task(text(backend, "truncated"))
            while len(server.received) < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            server.end_shared_streams()
            with pytest.raises(GatewayError, match="Incomplete generation"):
                await asked

    run(errors())
