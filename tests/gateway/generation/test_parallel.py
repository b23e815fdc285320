"""Generations side by side: when one fails or the client goes, all are closed."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.messages import Delta, GenerationRequest, Token
from multilora_gateway.errors import GatewayError, failed
from multilora_gateway.generation.parallel import interleaved, results


class Scripted(Backend):
    """Generates the prompt's ids as letters; id 0 fails, a negative id never ends."""

    def __init__(self) -> None:
        self.open = 0

    async def generate(self, asked: GenerationRequest) -> AsyncGenerator[Delta, None]:
        self.open += 1
        try:
            for token_id in asked.prompt_ids:
                if token_id < 0:
                    await asyncio.sleep(3600)
                if token_id == 0:
                    raise failed("broken")
                await asyncio.sleep(0)
                yield Delta(chr(token_id), (Token(token_id),))
            yield Delta("", (), "stop")
        finally:
            self.open -= 1


def requests(*texts: str, end: int | None = None) -> list[GenerationRequest]:
    return [GenerationRequest([*text.encode(), *([] if end is None else [end])]) for text in texts]


def test_answers_keep_their_order() -> None:
    backend = Scripted()
    found = asyncio.run(results(backend, requests("abc", "", "de")))
    assert [answer.text for answer in found] == ["abc", "", "de"]
    assert backend.open == 0


@pytest.mark.parametrize("others", [[], requests("a" * 50), requests("a", "b", end=-1)])
def test_one_failure_ends_all(others: list[GenerationRequest]) -> None:
    async def run() -> int:
        backend = Scripted()
        with pytest.raises(GatewayError, match="broken"):
            await results(backend, [*requests("x", end=0), *others])
        return backend.open

    assert asyncio.run(run()) == 0


@pytest.mark.parametrize("count", [1, 4])
def test_closing_the_stream_closes_all(count: int) -> None:
    async def run() -> tuple[int, int]:
        backend = Scripted()
        deltas = interleaved(backend, requests(*["ab"] * count, end=-1))
        for _ in range(2 * count):
            await anext(deltas)
        before = backend.open
        await deltas.aclose()
        return before, backend.open

    assert asyncio.run(run()) == (count, 0)
