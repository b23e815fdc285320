"""The answer to a TGI job: one JSON object and headers, or server-sent events.

Laws: the bytes are TGI's. A stream has one event for each token, and its last event has the whole
text. An error in a stream is an event of its own, the last one. Closing the generator of events
ends what the engine does for the job.
"""

import json
import math
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from multilora_gateway.backend.messages import Delta, GenerationRequest, Token
from multilora_gateway.errors import GatewayError, tgi_body
from multilora_gateway.generation.parallel import GenerationResult
from multilora_gateway.tgi.job import TgiJob
from multilora_gateway.tgi.tokens import TokenTexts, prefill_tokens

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class FinishedSequence:
    """One of the sequences of `best_of`. `body` is its part of the details, generated_text first.
    `queue_seconds` is how long its request waited in the engine."""

    body: dict[str, Any]
    mean_logprob: float
    tokens: int
    queue_seconds: float


def finished_sequence(
    job: TgiJob, request: GenerationRequest, result: GenerationResult
) -> FinishedSequence:
    """Decodes the tokens of the answer to one of the job's requests."""
    texts = TokenTexts(job.base.tokenizer, request.prompt_ids)
    shown, top = [], []
    for number, token in enumerate(result.tokens, 1):
        shown.append(texts.push(token, last=number == len(result.tokens)))
        _add_likely_tokens(job, texts, token, shown[-1], top)
    body = {
        "generated_text": job.prefix + texts.text,
        "finish_reason": _finish_reason(job, result.finish_reason, texts.text),
        "generated_tokens": texts.count,
        "seed": request.sampling.get("seed"),
        "prefill": prefill_tokens(job.base.tokenizer, request.prompt_ids, result.prompt),
        "tokens": shown,
        **({"top_tokens": top} if top else {}),
    }
    queued = result.queue_seconds or 0.0
    return FinishedSequence(body, _mean_logprob(result.tokens), texts.count, queued)


def generated(
    job: TgiJob, sequences: Sequence[FinishedSequence]
) -> tuple[dict[str, Any], FinishedSequence]:
    """The answer to /generate, and the sequence that it reports: the likeliest one."""
    best, *others = sorted(sequences, key=lambda each: each.mean_logprob, reverse=True)
    body = dict(best.body)
    answer: dict[str, Any] = {"generated_text": body.pop("generated_text")}
    if job.parameters.wants_details:
        if others:
            top = body.pop("top_tokens", None)
            body["best_of_sequences"] = [each.body for each in others]
            body |= {"top_tokens": top} if top else {}
        answer["details"] = body | _lorax_details(job)
    return answer, best


async def whole_answer(job: TgiJob) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Runs a job; the JSON and the headers of its answer."""
    found = zip(job.requests, await job.results(), strict=True)
    answer, best = generated(job, [finished_sequence(job, *each) for each in found])
    return answer, end_headers(job, best)


def start_headers(job: TgiJob) -> dict[str, str]:
    """What is known before the first token."""
    return {
        "x-compute-type": "cpu" if job.base.device == "cpu" else "gpu+optimized",
        "x-compute-characters": str(len(job.request.inputs)),
    }


def end_headers(job: TgiJob, sequence: FinishedSequence) -> Mapping[str, str]:
    """The headers of a whole answer. x-compute-time is in seconds, other times in milliseconds."""
    now, arrived = time.perf_counter(), job.context.arrived
    inference = max(now - job.checked - sequence.queue_seconds, 0.0)
    return {
        **start_headers(job),
        "x-compute-time": f"{now - arrived:.6f}",
        "x-total-time": _milliseconds(now - arrived),
        "x-validation-time": _milliseconds(job.checked - arrived),
        "x-queue-time": _milliseconds(sequence.queue_seconds),
        "x-inference-time": _milliseconds(inference),
        "x-time-per-token": _milliseconds(inference / max(sequence.tokens, 1)),
        "x-prompt-tokens": str(job.input_length),
        "x-generated-tokens": str(sequence.tokens),
    }


async def events(job: TgiJob) -> AsyncGenerator[bytes, None]:
    """Runs a job of one answer; yields the events of each delta in one chunk."""
    texts = TokenTexts(job.base.tokenizer, job.requests[0].prompt_ids)
    try:
        async with aclosing(job.deltas()) as deltas:
            async for _, delta in deltas:
                yield _chunk(job, texts, delta)
    except GatewayError as error:
        yield _error_event(_stream_error(error))


async def refused(error: GatewayError) -> AsyncGenerator[bytes, None]:
    """The stream of a request that was refused."""
    yield _error_event(error)


def _chunk(job: TgiJob, texts: TokenTexts, delta: Delta) -> bytes:
    """The events of a delta. The last delta has a reason but no token when there was no room for
    one."""
    reason = delta.finish_reason
    last = len(delta.tokens) if reason else 0
    chunks = []
    for number, token in enumerate(delta.tokens, 1):
        shown, top = texts.push(token, last=number == last), []
        _add_likely_tokens(job, texts, token, shown, top)
        chunks.append(_token_event(job, texts, shown, top, reason if number == last else None))
    if reason and not delta.tokens:
        nothing = {"id": texts.last_id or 0, "text": texts.rest(), "logprob": 0.0, "special": True}
        chunks.append(_token_event(job, texts, nothing, [], reason))
    return b"".join(chunks)


def _token_event(
    job: TgiJob, texts: TokenTexts, shown: dict[str, Any], top: list[Any], reason: str | None
) -> bytes:
    return _event(
        {
            "index": texts.count,
            "token": shown,
            **({"top_tokens": top[0]} if top else {}),
            "generated_text": job.prefix + texts.text if reason else None,
            "details": _stream_details(job, texts, reason) if reason else None,
        }
    )


def _error_event(error: GatewayError) -> bytes:
    return _event(tgi_body(error))


def _event(body: dict[str, Any]) -> bytes:
    """One event. Only a lone surrogate could not be encoded, and no text here has one."""
    return f"data:{_encode(body)}\n\n".encode()


def _stream_error(error: GatewayError) -> GatewayError:
    """TGI has another name for an answer that breaks off when it is streamed."""
    if error.kind != "incomplete_generation":
        return error
    return GatewayError(500, "incomplete_generation_stream", "Incomplete generation stream")


def _add_likely_tokens(
    job: TgiJob, texts: TokenTexts, token: Token, shown: dict[str, Any], top: list[Any]
) -> None:
    """Adds the likeliest tokens in the place of `token` where the client looks for them: in `top`
    for TGI, in the token's own JSON for LoRAX."""
    if count := job.parameters.top_n_tokens:
        top.append(texts.top(token, shown, count))
    if count := job.parameters.return_k_alternatives:
        found = texts.top(token, shown, count)
        keys = ("id", "text", "logprob")
        shown["alternative_tokens"] = [{key: each[key] for key in keys} for each in found]


def _stream_details(job: TgiJob, texts: TokenTexts, reason: str) -> dict[str, Any] | None:
    """The details in the last event; None unless asked for."""
    if not job.parameters.details:
        return None
    return {
        "finish_reason": _finish_reason(job, reason, texts.text),
        "generated_tokens": texts.count,
        "seed": job.seed,
        "input_length": job.input_length,
        **_lorax_details(job),
    }


def _finish_reason(job: TgiJob, reason: str, text: str) -> str:
    """The engine's reason in TGI's words, for an answer whose whole text is `text`."""
    if reason == "length":
        return "length"
    stopped = any(stop in text for stop in job.parameters.stop or ())
    return "stop_sequence" if stopped else "eos_token"


def _lorax_details(job: TgiJob) -> dict[str, int]:
    return {"prompt_tokens": job.input_length} if job.parameters.of_lorax else {}


def _mean_logprob(tokens: Sequence[Token]) -> float:
    known = [token.logprob for token in tokens if token.logprob is not None]
    return sum(known) / len(known) if known else -math.inf


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
