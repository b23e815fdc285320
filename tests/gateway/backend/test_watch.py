"""Who waits for a Triton model whose process has died is told so, and nobody else."""

import asyncio
from collections.abc import Iterator

import pytest

from multilora_gateway.backend import watch as engine_watch
from multilora_gateway.backend.messages import GenerationRequest
from multilora_gateway.backend.watch import ModelProbe
from multilora_gateway.errors import GatewayError
from multilora_gateway.generation.parallel import results
from support.fake.adapters import FakeAdapters
from support.gateway.backend import connected, run


@pytest.fixture
def server() -> Iterator[FakeAdapters]:
    server = FakeAdapters()
    yield server
    server.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_watch, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(engine_watch, "LOOK_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("question", ["generate", "adapters"])
def test_whoever_waits_for_a_dead_engine_is_told(server: FakeAdapters, question: str) -> None:
    async def errors() -> None:
        async with connected(server) as backend:
            if question == "generate":
                call = results(backend, [GenerationRequest([1], "silent")])
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


@pytest.mark.usefixtures("impatient")
def test_the_watch_outlives_its_own_failures(
    server: FakeAdapters, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ask, failures = ModelProbe.ask, [RuntimeError("odd")]

    async def failing(self: ModelProbe, seconds: float) -> None:
        if failures:
            raise failures.pop()
        await ask(self, seconds)

    monkeypatch.setattr(ModelProbe, "ask", failing)

    async def errors() -> None:
        async with connected(server) as backend:
            waiting = asyncio.ensure_future(results(backend, [GenerationRequest([1], "silent")]))
            await asyncio.sleep(0.1)
            server.dead = True
            with pytest.raises(GatewayError, match="does not answer any more"):
                await waiting

    run(errors())
    assert not failures and "odd" in caplog.text


def test_leaving_a_silent_answer_is_no_error(server: FakeAdapters) -> None:
    async def leave() -> None:
        async with connected(server) as backend:
            waiting = asyncio.ensure_future(results(backend, [GenerationRequest([1], "silent")]))
            await asyncio.sleep(0.2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    run(leave())
