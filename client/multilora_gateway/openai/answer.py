"""The answer to a job: one JSON object, or server-sent events ending in [DONE]."""

import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from multilora_gateway.backend.client import Backend
from multilora_gateway.errors import GatewayError, openai_body
from multilora_gateway.generation.parallel import NumberedPiece, answers, interleaved
from multilora_gateway.http.streaming import EventStream, until_disconnected
from multilora_gateway.openai.job import Job

_DONE = b"data: [DONE]\n\n"


async def respond(request: Request, backend: Backend, job: Job, stream: bool) -> Response:
    """An error before the first piece is raised; after it, it is an event."""
    pieces = interleaved(backend, job.calls)
    if not stream:
        return JSONResponse(await until_disconnected(request, _whole(job, pieces)))
    try:
        first = await until_disconnected(request, anext(pieces))
    except BaseException:
        await pieces.aclose()
        raise
    return _JobStream(job, first, pieces)


async def _whole(job: Job, pieces: AsyncGenerator[NumberedPiece, None]) -> dict[str, Any]:
    found = await answers(pieces, len(job.calls))
    choices = [
        {"index": number, **job.choice(number).whole(answer)} for number, answer in enumerate(found)
    ]
    usage = job.usage(sum(len(answer.tokens) for answer in found))
    return {**job.head(chunk=False), "choices": choices, "usage": usage}


class _JobStream(EventStream):
    """Closes the generations also when the client goes before the first event is made."""

    def __init__(
        self, job: Job, first: NumberedPiece, pieces: AsyncGenerator[NumberedPiece, None]
    ) -> None:
        super().__init__(events(job, first, pieces))
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._pieces):
            await super().__call__(scope, receive, send)


async def events(
    job: Job, first: NumberedPiece, pieces: AsyncGenerator[NumberedPiece, None]
) -> AsyncGenerator[bytes, None]:
    """The stream of a job whose first piece is known; ends in [DONE] also after an error."""
    head = job.head(chunk=True)
    choices = [job.choice(number) for number in range(len(job.calls))]
    openings = [
        _event(job, head, number, chunk)
        for number, choice in enumerate(choices)
        for chunk in choice.opening()
    ]
    if openings:
        yield b"".join(openings)
    tokens = 0
    item: NumberedPiece | None = first
    try:
        while item is not None:
            number, piece = item
            tokens += len(piece.tokens)
            if chunks := choices[number].chunks(piece):
                yield b"".join(_event(job, head, number, chunk) for chunk in chunks)
            item = await anext(pieces, None)
        if job.with_usage:
            yield _data({**head, "choices": [], "usage": job.usage(tokens)})
    except GatewayError as error:
        yield _data(openai_body(error))
    yield _DONE


def _event(job: Job, head: dict[str, Any], number: int, chunk: dict[str, Any]) -> bytes:
    body = {**head, "choices": [{"index": number, **chunk}]}
    if job.with_usage:
        body["usage"] = None
    return _data(body)


def _data(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"data: {text}\n\n".encode()
