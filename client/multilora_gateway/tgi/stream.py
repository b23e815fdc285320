"""TGI's server-sent events: one for each token, the last one with the whole text.

Laws: the bytes are TGI's. Whatever goes wrong is an event of its own, the last one. Closing the
generator closes what the engine does for it.
"""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from multilora_gateway.backend.client import Backend
from multilora_gateway.errors import GatewayError, tgi_body
from multilora_gateway.generation.job import Piece
from multilora_gateway.tgi.answer import stream_details, with_top
from multilora_gateway.tgi.job import Job
from multilora_gateway.tgi.tokens import TokenTexts

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def event(body: dict[str, Any]) -> bytes:
    """One event. Nothing but a lone surrogate cannot be UTF-8, and text has none."""
    return f"data:{_encode(body)}\n\n".encode()


def error_event(error: GatewayError) -> bytes:
    return event(tgi_body(error))


async def failed(error: GatewayError) -> AsyncGenerator[bytes, None]:
    """The stream of a request that was refused."""
    yield error_event(error)


async def events(job: Job, backend: Backend) -> AsyncGenerator[bytes, None]:
    """Runs a job; one chunk for each piece of the engine's answer."""
    texts = TokenTexts(job.base.tokenizer, job.call.prompt_ids)
    try:
        async with aclosing(backend.generate(job.call)) as pieces:
            async for piece in pieces:
                yield _chunk(job, texts, piece)
    except GatewayError as error:
        yield error_event(_of_stream(error))


def _of_stream(error: GatewayError) -> GatewayError:
    """TGI has another name for an answer that breaks off when it is streamed."""
    if error.kind != "incomplete_generation":
        return error
    return GatewayError(500, "incomplete_generation_stream", "Incomplete generation stream")


def _chunk(job: Job, texts: TokenTexts, piece: Piece) -> bytes:
    """The events of a piece. The last piece may bring a reason without a token: there was no room
    for one."""
    reason = piece.finish_reason
    last = len(piece.tokens) if reason else 0
    chunks = []
    for number, token in enumerate(piece.tokens, 1):
        shown, top = texts.push(token, last=number == last), []
        with_top(job, texts, token, shown, top)
        chunks.append(_event_of(job, texts, shown, top, reason if number == last else None))
    if reason and not piece.tokens:
        nothing = {"id": texts.last_id or 0, "text": texts.rest(), "logprob": 0.0, "special": True}
        chunks.append(_event_of(job, texts, nothing, [], reason))
    return b"".join(chunks)


def _event_of(
    job: Job, texts: TokenTexts, shown: dict[str, Any], top: list[Any], reason: str | None
) -> bytes:
    return event(
        {
            "index": texts.count,
            "token": shown,
            **({"top_tokens": top[0]} if top else {}),
            "generated_text": job.prefix + texts.text if reason else None,
            "details": stream_details(job, texts, reason) if reason else None,
        }
    )
