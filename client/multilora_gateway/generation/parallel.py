"""Several generations at once, as one stream of pieces."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from multilora_gateway.backend.client import Backend
from multilora_gateway.generation.job import Answer, Call, Piece

NumberedPiece = tuple[int, Piece]


async def interleaved(
    backend: Backend, calls: Sequence[Call]
) -> AsyncGenerator[NumberedPiece, None]:
    """Pieces as they come, each with the number of its call.

    Raises what the first call to fail raises. Then, and when this is closed, all calls are closed.
    """
    if len(calls) == 1:
        async with contextlib.aclosing(backend.generate(calls[0])) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    arrived: asyncio.Queue[NumberedPiece | BaseException | None] = asyncio.Queue()
    tasks = [
        asyncio.create_task(_read(backend, number, call, arrived))
        for number, call in enumerate(calls)
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


async def answers(pieces: AsyncGenerator[NumberedPiece, None], count: int) -> list[Answer]:
    """The whole answers of `count` calls, in their order."""
    found: list[list[Piece]] = [[] for _ in range(count)]
    async with contextlib.aclosing(pieces):
        async for number, piece in pieces:
            found[number].append(piece)
    return [Answer.joined(each) for each in found]


async def _read(
    backend: Backend,
    number: int,
    call: Call,
    arrived: asyncio.Queue[NumberedPiece | BaseException | None],
) -> None:
    try:
        async with contextlib.aclosing(backend.generate(call)) as pieces:
            async for piece in pieces:
                arrived.put_nowait((number, piece))
        arrived.put_nowait(None)
    except Exception as error:
        arrived.put_nowait(error)
