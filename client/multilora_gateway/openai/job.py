"""The job of a request to the OpenAI API, and its answer: one JSON object, or server-sent events.

Laws: an error before the first delta is an HTTP error; a later error is an event of the stream. A
stream ends in [DONE], also after an error.
"""

import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from multilora_gateway.backend.messages import Delta
from multilora_gateway.errors import GatewayError, openai_body
from multilora_gateway.generation.job import GenerationJob
from multilora_gateway.generation.model_name import ResolvedModel
from multilora_gateway.generation.parallel import GenerationResult, NumberedDelta
from multilora_gateway.http.streaming import EventStream, until_disconnected

_DONE = b"data: [DONE]\n\n"


class Choice(Protocol):
    """Turns one answer into the JSON of its choice. Each answer has an instance of its own."""

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before anything is generated; `index` is added to each."""
        ...

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """The chunks that a delta brings."""
        ...

    def whole(self, result: GenerationResult) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""
        ...


@dataclass(frozen=True, kw_only=True)
class CompletionJob(GenerationJob):
    """`choice(number)` renders the answer to `requests[number]`.

    `prompt_tokens` counts each prompt once, however many choices the prompt has.
    """

    id_prefix: str
    object: str
    chunk_object: str
    model: ResolvedModel
    choice: Callable[[int], Choice]
    prompt_tokens: int
    with_usage: bool

    def head(self, chunk: bool) -> dict[str, Any]:
        """The fields that an answer begins with. Each call makes a new id, so call it once."""
        return {
            "id": f"{self.id_prefix}-{uuid.uuid4().hex}",
            "object": self.chunk_object if chunk else self.object,
            "created": int(time.time()),
            "model": self.model.name,
            "system_fingerprint": self.base.fingerprint,
        }

    def usage(self, completion_tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }


async def respond(request: Request, job: CompletionJob, stream: bool) -> Response:
    """Runs a job. Raises GatewayError before the first delta."""
    if not stream:
        return JSONResponse(await until_disconnected(request, _whole_answer(job)))
    deltas = job.deltas()
    try:
        first = await until_disconnected(request, anext(deltas))
    except BaseException:
        await deltas.aclose()
        raise
    return _JobStream(job, first, deltas)


async def _whole_answer(job: CompletionJob) -> dict[str, Any]:
    found = await job.results()
    choices = [
        {"index": number, **job.choice(number).whole(result)} for number, result in enumerate(found)
    ]
    usage = job.usage(sum(len(result.tokens) for result in found))
    return {**job.head(chunk=False), "choices": choices, "usage": usage}


class _JobStream(EventStream):
    """Closes the deltas also when the client goes before the first event is made."""

    def __init__(
        self, job: CompletionJob, first: NumberedDelta, deltas: AsyncGenerator[NumberedDelta, None]
    ) -> None:
        super().__init__(events(job, first, deltas))
        self._deltas = deltas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._deltas):
            await super().__call__(scope, receive, send)


async def events(
    job: CompletionJob, first: NumberedDelta, deltas: AsyncGenerator[NumberedDelta, None]
) -> AsyncGenerator[bytes, None]:
    """The stream of a job whose first delta is known."""
    head = job.head(chunk=True)
    choices = [job.choice(number) for number in range(len(job.requests))]
    openings = [
        _event(job, head, number, chunk)
        for number, choice in enumerate(choices)
        for chunk in choice.opening()
    ]
    if openings:
        yield b"".join(openings)
    tokens = 0
    item: NumberedDelta | None = first
    try:
        while item is not None:
            number, delta = item
            tokens += len(delta.tokens)
            if chunks := choices[number].chunks(delta):
                yield b"".join(_event(job, head, number, chunk) for chunk in chunks)
            item = await anext(deltas, None)
        if job.with_usage:
            yield _data({**head, "choices": [], "usage": job.usage(tokens)})
    except GatewayError as error:
        yield _data(openai_body(error))
    yield _DONE


def _event(job: CompletionJob, head: dict[str, Any], number: int, chunk: dict[str, Any]) -> bytes:
    body = {**head, "choices": [{"index": number, **chunk}]}
    if job.with_usage:
        body["usage"] = None
    return _data(body)


def _data(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"data: {text}\n\n".encode()
