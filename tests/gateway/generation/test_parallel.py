"""Generations side by side: when one fails or the client goes, all are closed."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from multilora_gateway.backend.client import Backend
from multilora_gateway.errors import GatewayError, failed
from multilora_gateway.generation.job import Call, Piece, Token
from multilora_gateway.generation.model_name import Target
from multilora_gateway.generation.parallel import answers, interleaved
from multilora_gateway.openai.answer import events
from multilora_gateway.openai.completions import TextChoice
from multilora_gateway.openai.job import Job


class Scripted(Backend):
    """Generates the prompt's ids as letters; id 0 fails, a negative id never ends."""

    def __init__(self) -> None:
        self.open = 0

    async def generate(self, call: Call) -> AsyncGenerator[Piece, None]:
        self.open += 1
        try:
            for token_id in call.prompt_ids:
                if token_id < 0:
                    await asyncio.sleep(3600)
                if token_id == 0:
                    raise failed("broken")
                await asyncio.sleep(0)
                yield Piece(chr(token_id), (Token(token_id),))
            yield Piece("", (), "stop")
        finally:
            self.open -= 1


def calls(*texts: str, end: int | None = None) -> list[Call]:
    return [Call([*text.encode(), *([] if end is None else [end])]) for text in texts]


def test_answers_keep_their_order() -> None:
    backend = Scripted()
    found = asyncio.run(answers(interleaved(backend, calls("abc", "", "de")), 3))
    assert [answer.text for answer in found] == ["abc", "", "de"]
    assert backend.open == 0


@pytest.mark.parametrize("others", [[], calls("a" * 50), calls("a", "b", end=-1)])
def test_one_failure_ends_all(others: list[Call]) -> None:
    async def run() -> int:
        backend = Scripted()
        with pytest.raises(GatewayError, match="broken"):
            await answers(interleaved(backend, [*calls("x", end=0), *others]), 1 + len(others))
        return backend.open

    assert asyncio.run(run()) == 0


@pytest.mark.parametrize("count", [1, 4])
def test_closing_the_stream_closes_all(count: int) -> None:
    async def run() -> tuple[int, int]:
        backend = Scripted()
        pieces = interleaved(backend, calls(*["ab"] * count, end=-1))
        for _ in range(2 * count):
            await anext(pieces)
        before = backend.open
        await pieces.aclose()
        return before, backend.open

    assert asyncio.run(run()) == (count, 0)


def test_an_error_in_the_stream_is_an_event_before_done() -> None:
    job: Any = Job(
        kind="cmpl", object="text_completion", chunk_object="text_completion",
        target=Target("base", ""), base=None, calls=calls("hi", end=0),  # pyright: ignore
        choice=lambda _: TextChoice(None, "", False),  # pyright: ignore
        prompt_tokens=1, with_usage=True,
    )  # fmt: skip

    async def run() -> list[bytes]:
        pieces = interleaved(Scripted(), job.calls)
        return [event async for event in events(job, await anext(pieces), pieces)]

    *chunks, error, done = asyncio.run(run())
    texts = [json.loads(chunk.removeprefix(b"data: "))["choices"][0]["text"] for chunk in chunks]
    assert texts == ["h", "i"]
    assert json.loads(error.removeprefix(b"data: "))["error"]["message"] == "broken"
    assert done == b"data: [DONE]\n\n"
