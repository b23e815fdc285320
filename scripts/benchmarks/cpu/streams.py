"""Batches of streamed completions over HTTP, all sent at once, and the rates of their tokens.

The client shares the processors with the server: it only stamps events as they come, and looks at
them when all have ended.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from urllib.parse import urlsplit

from benchmarks.common.machine import OthersShare
from benchmarks.common.statistics import median

BASE = "base"  # as the server calls it
_MOST_SECONDS = 600.0  # for a batch
_EVENT = b"data: {"


class MeasurementError(Exception):
    """A contender did something that makes its figures meaningless."""


@dataclass(frozen=True)
class Rates:
    """Of one batch: tokens per second, and seconds to the first token (median of the requests).

    `decode` counts while all requests decode. Where they hardly ever did so together, it counts
    from the first token to the last, other requests' prompts included. `others` is the part of the
    machine's processor time that other programs took meanwhile, from 0 to 1.
    """

    decode: float
    end_to_end: float
    first_token: float
    together: bool
    others: float = 0.0


def rates(events: Sequence[Sequence[float]], tokens: int) -> Rates:
    """`events[i]` are the seconds, since all were sent, of the events of request i, each of which
    brought its part of the request's `tokens`.

    All decode from the latest first event to the earliest last one. That time does not count when
    it is less than a quarter of all, or brought less than a quarter of the tokens.
    """
    first, last = [times[0] for times in events], [times[-1] for times in events]
    total, generating = len(events) * tokens, max(last) - min(first)
    begin, end = max(first), min(last)
    brought = sum(tokens * sum(begin < t <= end for t in times) / len(times) for times in events)
    together = end > begin and 4 * (end - begin) >= generating and 4 * brought >= total
    end_to_end = total / max(last)
    if together:
        decode = brought / (end - begin)
    else:  # one event may have brought all
        decode = (total - 1) / generating if generating else end_to_end
    return Rates(decode, end_to_end, median(first), together)


class StreamClient:
    """Of an OpenAI-compatible server. Prompts are random, so that a prefix cache never helps."""

    def __init__(self, url: str, vocab_size: int) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._vocab_size = vocab_size
        self._random = Random(7)

    def run(self, models: Sequence[str], prompt_tokens: int, new_tokens: int) -> Rates:
        """One request for each of `models`, all at once; raises MeasurementError."""
        requests = [self._request(model, prompt_tokens, new_tokens) for model in models]
        others = OthersShare()
        try:
            began, answers = asyncio.run(self._send(requests))
        except (OSError, TimeoutError) as error:
            raise MeasurementError(f"no answer: {type(error).__name__}: {error}") from None
        share = others.now()
        events = [_times(answer, began, new_tokens) for answer in answers]
        return replace(rates(events, new_tokens), others=share)

    def _request(self, model: str, prompt_tokens: int, new_tokens: int) -> bytes:
        body = {
            "model": model,
            "prompt": self._random.choices(range(self._vocab_size), k=prompt_tokens),
            "max_tokens": new_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        content = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    async def _send(
        self, requests: Sequence[bytes]
    ) -> tuple[float, list[list[tuple[float, bytes]]]]:
        """When all were sent, and the events of each."""
        began = time.perf_counter()
        async with asyncio.timeout(_MOST_SECONDS):
            return began, await asyncio.gather(*map(self._events, requests))

    async def _events(self, request: bytes) -> list[tuple[float, bytes]]:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request)
            if b" 200" not in (status := await reader.readline()):
                said = (status + await reader.read()).decode(errors="replace")
                raise MeasurementError(f"a request was refused: {said.strip()[:500]}")
            return [(time.perf_counter(), line) async for line in reader if line.startswith(_EVENT)]
        finally:
            writer.close()


def _times(events: Sequence[tuple[float, bytes]], began: float, tokens: int) -> list[float]:
    """When the events with tokens came; the last one says how many there were."""
    last = json.loads(events[-1][1].removeprefix(b"data: ")) if events else {}
    generated = (last.get("usage") or {}).get("completion_tokens")
    if len(events) < 2 or generated != tokens:
        raise MeasurementError(f"an answer has {generated} of {tokens} tokens: {last}")
    return [when - began for when, _ in events[:-1]]
