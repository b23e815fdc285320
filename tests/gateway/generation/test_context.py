"""Whether one request more is taken."""

import asyncio
from collections.abc import Iterator

import pytest

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.messages import GenerationRequest
from multilora_gateway.errors import RETRY_SECONDS, GatewayError
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.generation.parallel import results
from multilora_gateway.http.access import Caller
from multilora_gateway.settings import Settings
from support.chats import RENDERER
from support.fake.adapters import FakeAdapters
from support.gateway.backend import connected, description, run

MOST = 2


@pytest.fixture
def server() -> Iterator[FakeAdapters]:
    server = FakeAdapters(base={**description("base"), "max_concurrent_requests": MOST})
    yield server
    server.close()


def context(backend: Backend) -> RequestContext:
    return RequestContext(backend, RENDERER, Settings(), Caller())


def test_what_the_engine_would_refuse_is_refused_without_asking_it(server: FakeAdapters) -> None:
    async def refusals() -> list[list[int]]:
        async with connected(server) as backend:
            asked = context(backend)
            await asked.admitted()
            silent = GenerationRequest([1], "silent")
            running = [asyncio.create_task(results(backend, [silent])) for _ in range(MOST)]
            while backend.generating < MOST:
                await asyncio.sleep(0.01)
            refused: list[list[int]] = []
            for _ in range(3):
                with pytest.raises(GatewayError) as raised:
                    await asked.admitted()
                error = raised.value
                refused.append([error.status, int(error.headers["Retry-After"])])
            running.pop().cancel()
            while backend.generating == MOST:
                await asyncio.sleep(0.01)
            await asked.admitted()
            running.pop().cancel()
            return refused

    # As many come again in RETRY_SECONDS as there are places.
    expected = [RETRY_SECONDS, RETRY_SECONDS + 1, RETRY_SECONDS + 2]
    assert run(refusals()) == [[429, seconds] for seconds in expected]


@pytest.mark.parametrize("adapter_id", ["NOT_FOUND", ""])
def test_what_has_ended_makes_room(server: FakeAdapters, adapter_id: str) -> None:
    async def left() -> int:
        async with connected(server) as backend:
            request = GenerationRequest([1], adapter_id)
            await asyncio.gather(results(backend, [request]), return_exceptions=True)
            return backend.generating

    assert run(left()) == 0
