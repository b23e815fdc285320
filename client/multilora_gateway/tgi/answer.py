"""Finished generations as TGI's JSON objects and headers."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multilora_gateway.generation.job import Answer, Token
from multilora_gateway.tgi.job import Job
from multilora_gateway.tgi.tokens import TokenTexts


@dataclass(frozen=True)
class Generation:
    """One generation of a job. `body` is its part of the details, generated_text first."""

    body: dict[str, Any]
    mean_logprob: float
    tokens: int
    queue_seconds: float


def generation_of(job: Job, answer: Answer) -> Generation:
    """Decodes an answer's tokens."""
    texts = TokenTexts(job.base.tokenizer, job.call.prompt_ids)
    shown, top = [], []
    for number, token in enumerate(answer.tokens, 1):
        shown.append(texts.push(token, last=number == len(answer.tokens)))
        with_top(job, texts, token, shown[-1], top)
    body = {
        "generated_text": job.prefix + texts.text,
        "finish_reason": finish_reason(job, answer.finish_reason, texts.last_id),
        "generated_tokens": texts.count,
        "seed": job.seed,
        "prefill": [],
        "tokens": shown,
        **({"top_tokens": top} if top else {}),
    }
    return Generation(body, _mean(answer.tokens), texts.count, answer.queue_seconds or 0.0)


def with_top(
    job: Job, texts: TokenTexts, token: Token, shown: dict[str, Any], top: list[Any]
) -> None:
    """Put the likely tokens in the place of `token` where the client looks for them: TGI's in
    `top`, LoRAX's in the token."""
    if count := job.parameters.top_n_tokens:
        top.append(texts.top(token, shown, count))
    if count := job.parameters.return_k_alternatives:
        found = texts.top(token, shown, count)
        keys = ("id", "text", "logprob")
        shown["alternative_tokens"] = [{key: each[key] for key in keys} for each in found]


def generated(job: Job, sequences: Sequence[Generation]) -> tuple[dict[str, Any], Generation]:
    """The answer to /generate, and the sequence it is about: the likeliest."""
    best, *others = sorted(sequences, key=lambda each: each.mean_logprob, reverse=True)
    body = dict(best.body)
    answer: dict[str, Any] = {"generated_text": body.pop("generated_text")}
    if job.parameters.details:
        if others:
            top = body.pop("top_tokens", None)
            body["best_of_sequences"] = [each.body for each in others]
            body |= {"top_tokens": top} if top else {}
        answer["details"] = body | _for_lorax(job)
    return answer, best


def stream_details(job: Job, texts: TokenTexts, reason: str) -> dict[str, Any] | None:
    """The details in the last event; None unless asked for."""
    if not job.parameters.details:
        return None
    return {
        "finish_reason": finish_reason(job, reason, texts.last_id),
        "generated_tokens": texts.count,
        "seed": job.seed,
        "input_length": job.input_length,
        **_for_lorax(job),
    }


def finish_reason(job: Job, reason: str, last_id: int | None) -> str:
    """The engine's reason in TGI's words."""
    if reason == "length":
        return "length"
    if last_id in job.base.eos_token_ids and not job.parameters.ignore_eos_token:
        return "eos_token"
    return "stop_sequence"


def start_headers(job: Job) -> dict[str, str]:
    """What is known before the first token."""
    return {
        "x-compute-type": "cpu" if job.base.device == "cpu" else "gpu+optimized",
        "x-compute-characters": str(len(job.request.inputs)),
    }


def end_headers(job: Job, sequence: Generation) -> Mapping[str, str]:
    """Times are in milliseconds, x-compute-time is in seconds."""
    now = time.perf_counter()
    inference = max(now - job.checked - sequence.queue_seconds, 0.0)
    return {
        **start_headers(job),
        "x-compute-time": f"{now - job.arrived:.6f}",
        "x-total-time": _milliseconds(now - job.arrived),
        "x-validation-time": _milliseconds(job.checked - job.arrived),
        "x-queue-time": _milliseconds(sequence.queue_seconds),
        "x-inference-time": _milliseconds(inference),
        "x-time-per-token": _milliseconds(inference / max(sequence.tokens, 1)),
        "x-prompt-tokens": str(job.input_length),
        "x-generated-tokens": str(sequence.tokens),
    }


def _for_lorax(job: Job) -> dict[str, int]:
    return {"prompt_tokens": job.input_length} if job.parameters.of_lorax else {}


def _mean(tokens: Sequence[Token]) -> float:
    known = [token.logprob for token in tokens if token.logprob is not None]
    return sum(known) / len(known) if known else -math.inf


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
