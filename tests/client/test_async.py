"""AsyncMultiLoRAClient against a real gRPC server on the loopback."""

import asyncio

import pytest

from multilora_client import (
    AsyncMultiLoRAClient,
    Generation,
    MultiLoRAError,
    NotFound,
    TimedOut,
    Unavailable,
)
from support.fake.triton import PIECES, FakeTriton

ANSWER = Generation("".join(PIECES), "stop", 7, 3)


def test_generate_stream_and_chat(server: FakeTriton) -> None:
    async def run() -> None:
        async with AsyncMultiLoRAClient(server.url) as client:
            assert await client.generate("x", adapter_id="sql", seed=1) == ANSWER
            assert await client.chat([{"role": "user", "content": "hi"}]) == ANSWER
            stream = client.stream("x")
            assert [piece async for piece in stream] == list(PIECES)
            assert stream.result == ANSWER

    asyncio.run(run())
    assert server.received[0][2]["seed"] == [1]
    assert server.received[1][2]["chat"] == [True]
    assert len(server.received) == 3


def test_many_streams_at_once(server: FakeTriton) -> None:
    async def run() -> list[Generation]:
        async with AsyncMultiLoRAClient(server.url) as client:
            requests = [client.generate("x", adapter_id="together") for _ in range(4)]
            return await asyncio.gather(*requests)

    assert asyncio.run(run()) == [ANSWER] * 4


def test_leaving_a_stream_stops_its_request(server: FakeTriton) -> None:
    async def run() -> str:
        async with AsyncMultiLoRAClient(server.url) as client:
            async with client.stream("x", adapter_id="endless") as stream:
                async for piece in stream:
                    assert piece == "more "
                    break
            return stream.request_id

    assert server.wait_until_stopped(asyncio.run(run()))


def test_a_stream_that_ends_in_an_error_is_read_to_its_end(server: FakeTriton) -> None:
    async def run() -> None:
        async with AsyncMultiLoRAClient(server.url) as client:
            with pytest.raises(Unavailable):
                await client.generate("x", adapter_id="UNAVAILABLE")

    asyncio.run(run())
    assert (len(server.received), server.cancelled) == (1, 0)


def test_cancelling_the_task_stops_its_request(server: FakeTriton) -> None:
    async def run() -> None:
        async with AsyncMultiLoRAClient(server.url) as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.generate("x", adapter_id="silent"), 0.3)

    asyncio.run(run())
    assert server.wait_until_stopped(server.received[0][1])


def test_closing_the_client_stops_what_runs(server: FakeTriton) -> None:
    async def run() -> str:
        async with AsyncMultiLoRAClient(server.url) as client:
            stream = client.stream("x", adapter_id="endless")
            await anext(stream)
        return stream.request_id

    assert server.wait_until_stopped(asyncio.run(run()))


@pytest.mark.parametrize(
    ("adapter_id", "kind"),
    [("NOT_FOUND", NotFound), ("silent", TimedOut), ("truncated", MultiLoRAError)],
)
def test_errors(server: FakeTriton, adapter_id: str, kind: type[MultiLoRAError]) -> None:
    async def run() -> None:
        async with AsyncMultiLoRAClient(server.url, timeout=0.5) as client:
            with pytest.raises(kind):
                await client.generate("x", adapter_id=adapter_id)
            assert await client.generate("x") == ANSWER

    asyncio.run(run())


def test_no_server_is_said_clearly(server: FakeTriton) -> None:
    server.close()

    async def run() -> None:
        async with AsyncMultiLoRAClient(server.url) as client:
            with pytest.raises(Unavailable, match=f"no Triton server answers .* {server.url}"):
                await client.generate("x")

    asyncio.run(run())


def test_a_closed_client_may_be_asked_to_stop(server: FakeTriton) -> None:
    async def run() -> None:
        client = AsyncMultiLoRAClient(server.url)
        await client.close()
        await client.cancel("nothing")
        await client.close()

    asyncio.run(run())
    assert not server.received
