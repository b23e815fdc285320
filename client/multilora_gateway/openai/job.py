"""The job of a request to the OpenAI API, and its answer: one JSON object, or server-sent events.

Laws: an error before the first delta is an HTTP error; a later error is an event of the stream. A
stream ends in [DONE], also after an error.
"""

import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from multilora_gateway.backend.messages import Delta, Entries, Token
from multilora_gateway.errors import GatewayError, openai_body
from multilora_gateway.generation.job import GenerationJob
from multilora_gateway.generation.model_name import ResolvedModel
from multilora_gateway.generation.parallel import GenerationResult, NumberedDelta
from multilora_gateway.http.streaming import EventStream, until_disconnected

UsageInStream = Literal["no chunk", "last chunk", "every chunk"]
TokenIds = Literal["nowhere", "of answer", "of choice"]
# The events of a job, by its first delta and the generator of the others.
EventsOf = Callable[
    [NumberedDelta, AsyncGenerator[NumberedDelta, None]], AsyncGenerator[bytes, None]
]
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

    `prompt_tokens` counts each prompt once, however many choices the prompt has. `token_ids` says
    where vLLM reports a prompt's token ids: those of a chat stand beside its choices, those of a
    completion in each. What is generated stands in the choice. `prompt_logprobs` is how many
    likeliest tokens to report at each token of a prompt, in `prompt_place`; None: nothing.
    """

    id_prefix: str
    object: str
    chunk_object: str
    model: ResolvedModel
    choice: Callable[[int], Choice]
    prompt_tokens: int
    usage_in_stream: UsageInStream
    token_ids: TokenIds = "nowhere"
    prompt_logprobs: int | None = None
    prompt_place: TokenIds = "of choice"

    def head(self, chunk: bool) -> dict[str, Any]:
        """The fields that an answer begins with. Each call makes a new id, so call it once."""
        return {
            "id": f"{self.id_prefix}-{uuid.uuid4().hex}",
            "object": self.chunk_object if chunk else self.object,
            "created": unix_seconds(),
            "model": self.model.name,
            "system_fingerprint": self.base.fingerprint,
        }

    def prompt_ids(self, number: int, place: TokenIds) -> dict[str, list[int]]:
        """What is reported in `place` of the prompt of `requests[number]`."""
        if self.token_ids != place:
            return {}
        return {"prompt_token_ids": list(self.requests[number].prompt_ids)}

    def prompt_entries(
        self, number: int, result: GenerationResult, place: TokenIds
    ) -> dict[str, list[Entries]]:
        """What is reported in `place` of log probabilities of the prompt of `requests[number]`."""
        most = self.prompt_logprobs
        if most is None or place != self.prompt_place:
            return {}
        told = zip(self.requests[number].prompt_ids, result.prompt, strict=True)
        return {"prompt_logprobs": [_likeliest(*each, most) for each in told]}

    def answer_ids(self, tokens: Sequence[Token]) -> dict[str, list[int]]:
        """What a choice reports of its tokens."""
        if self.token_ids == "nowhere":
            return {}
        return {"token_ids": [token.id for token in tokens]}

    def usage(self, completion_tokens: int, prompt_tokens: int | None = None) -> dict[str, int]:
        """Of all prompts, or of one."""
        prompt_tokens = self.prompt_tokens if prompt_tokens is None else prompt_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }


def unix_seconds() -> int:
    """Now, as the API tells times."""
    return int(time.time())


async def respond(request: Request, job: CompletionJob, stream: bool) -> Response:
    """Runs a job. Raises GatewayError before the first delta."""
    if not stream:
        return JSONResponse(await until_disconnected(request, whole_answer(job)))
    return await stream_response(request, job, lambda *deltas: events(job, *deltas))


async def stream_response(request: Request, job: CompletionJob, events: EventsOf) -> Response:
    """The answer to a job, streamed. Raises GatewayError before the first delta."""
    deltas = job.deltas()
    try:
        first = await until_disconnected(request, anext(deltas))
    except BaseException:
        await deltas.aclose()
        raise
    return _JobStream(events(first, deltas), deltas)


async def whole_answer(job: CompletionJob) -> dict[str, Any]:
    """The JSON of the answer to a job that is not streamed."""
    found = await job.results()
    choices = [
        {
            "index": number,
            **job.choice(number).whole(result),
            **job.prompt_ids(number, "of choice"),
            **job.prompt_entries(number, result, "of choice"),
            **job.answer_ids(result.tokens),
        }
        for number, result in enumerate(found)
    ]
    usage = job.usage(sum(len(result.tokens) for result in found))
    beside = job.prompt_ids(0, "of answer") | job.prompt_entries(0, found[0], "of answer")
    return {**job.head(chunk=False), "choices": choices, "usage": usage, **beside}


def _likeliest(token_id: int, entries: Entries, most: int) -> Entries:
    """The token itself and the `most` likeliest ones."""
    return entries and {
        name: entry
        for name, entry in entries.items()
        if entry["rank"] <= most or name == str(token_id)
    }


class _JobStream(EventStream):
    """Closes the deltas also when the client goes before the first event is made."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], deltas: AsyncGenerator[NumberedDelta, None]
    ) -> None:
        super().__init__(events)
        self._deltas = deltas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._deltas):
            await super().__call__(scope, receive, send)


async def events(
    job: CompletionJob, first: NumberedDelta, deltas: AsyncGenerator[NumberedDelta, None]
) -> AsyncGenerator[bytes, None]:
    """The stream of a job whose first delta is known."""
    head = job.head(chunk=True)
    choices = [_ChoiceEvents(job, number, head) for number in range(len(job.requests))]
    if openings := b"".join(choice.opening() for choice in choices):
        yield openings
    item: NumberedDelta | None = first
    try:
        while item is not None:
            number, delta = item
            if chunks := choices[number].of(delta):
                yield chunks
            item = await anext(deltas, None)
        if job.usage_in_stream != "no chunk":
            usage = job.usage(sum(choice.tokens for choice in choices))
            yield _data({**head, "choices": [], "usage": usage})
    except GatewayError as error:
        yield _data(openai_body(error))
    yield _DONE


class _ChoiceEvents:
    """The events of one choice. `tokens` counts what was generated of it so far."""

    def __init__(self, job: CompletionJob, number: int, head: dict[str, Any]) -> None:
        self.tokens = 0
        self._job = job
        self._number = number
        self._head = head
        self._choice = job.choice(number)
        self._unreported: list[Token] = []  # those whose text no chunk has brought yet
        self._begun = False

    def opening(self) -> bytes:
        return b"".join(map(self._event, self._choice.opening()))

    def of(self, delta: Delta) -> bytes:
        self.tokens += len(delta.tokens)
        if self._job.token_ids != "nowhere":
            self._unreported += delta.tokens
        return b"".join(map(self._event, self._choice.chunks(delta)))

    def _event(self, chunk: dict[str, Any]) -> bytes:
        job, choice = self._job, {"index": self._number, **chunk}
        body = {**self._head, "choices": [choice]}
        if job.token_ids != "nowhere":
            choice |= job.answer_ids(self._unreported)
            self._unreported.clear()
            if not self._begun:
                body |= job.prompt_ids(self._number, "of answer")
                choice |= job.prompt_ids(self._number, "of choice")
            self._begun = True
        if job.usage_in_stream == "last chunk":
            body["usage"] = None
        elif job.usage_in_stream == "every chunk":
            body["usage"] = job.usage(self.tokens, len(job.requests[self._number].prompt_ids))
        return _data(body)


def _data(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"data: {text}\n\n".encode()
