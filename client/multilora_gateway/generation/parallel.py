"""Several generations at once: as one stream of deltas, or as results in order."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.messages import Delta, Entries, GenerationRequest, Token

NumberedDelta = tuple[int, Delta]


@dataclass(frozen=True)
class GenerationResult:
    """All deltas of a generation together."""

    text: str
    tokens: tuple[Token, ...]
    finish_reason: str
    queue_seconds: float | None = None
    prompt: tuple[Entries, ...] = ()

    @staticmethod
    def joined(deltas: Sequence[Delta]) -> "GenerationResult":
        """The result of a whole stream, which has at least one delta."""
        return GenerationResult(
            "".join(delta.text for delta in deltas),
            tuple(token for delta in deltas for token in delta.tokens),
            deltas[-1].finish_reason or "stop",
            next((d.queue_seconds for d in deltas if d.queue_seconds is not None), None),
            tuple(entries for delta in deltas for entries in delta.prompt),
        )


async def interleaved(
    backend: Backend, requests: Sequence[GenerationRequest]
) -> AsyncGenerator[NumberedDelta, None]:
    """Deltas as they come, each with the number of its request.

    Raises the first error of any request. Then, and when the generator is closed, all requests end.
    """
    if len(requests) == 1:
        async with contextlib.aclosing(backend.generate(requests[0])) as deltas:
            async for delta in deltas:
                yield 0, delta
        return
    arrived: asyncio.Queue[NumberedDelta | BaseException | None] = asyncio.Queue()
    tasks = [
        asyncio.create_task(_read(backend, number, request, arrived))
        for number, request in enumerate(requests)
    ]
    running = len(tasks)
    try:
        while running:
            item = await arrived.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def results(
    backend: Backend, requests: Sequence[GenerationRequest]
) -> list[GenerationResult]:
    """The whole answers to `requests`, in their order. Raises the first error of any request."""
    found: list[list[Delta]] = [[] for _ in requests]
    async with contextlib.aclosing(interleaved(backend, requests)) as deltas:
        async for number, delta in deltas:
            found[number].append(delta)
    return [GenerationResult.joined(each) for each in found]


async def _read(
    backend: Backend,
    number: int,
    request: GenerationRequest,
    arrived: asyncio.Queue[NumberedDelta | BaseException | None],
) -> None:
    try:
        async with contextlib.aclosing(backend.generate(request)) as deltas:
            async for delta in deltas:
                arrived.put_nowait((number, delta))
        arrived.put_nowait(None)
    except Exception as error:
        arrived.put_nowait(error)
