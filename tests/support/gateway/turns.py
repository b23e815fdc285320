"""A chat whose choice writes the chunks that a test has written down."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.messages import Delta, GenerationRequest, Token
from multilora_gateway.errors import failed
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.generation.model_name import ResolvedModel
from multilora_gateway.http.access import Caller
from multilora_gateway.openai.job import CompletionJob
from multilora_gateway.openai.turn import Turn, turn_events, whole_turn
from multilora_gateway.settings import Settings
from support.chats import RENDERER
from support.gateway.tgi import base_model

Chunk = dict[str, Any]
ENTRY = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}


def thought(text: str) -> Chunk:
    return _chunk({"reasoning_content": text})


def said(text: str, logprobs: bool = False) -> Chunk:
    return _chunk({"content": text}, {"content": [ENTRY]} if logprobs else None)


def called(name: str, arguments: str) -> Chunk:
    function = {"name": name, "arguments": arguments}
    return _chunk({"tool_calls": [{"index": 0, "id": f"call_{name}", "function": function}]})


def more(arguments: str) -> Chunk:
    return _chunk({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]})


def end(reason: str) -> Chunk:
    return {**_chunk({"content": ""}), "finish_reason": reason}


class Written:
    """A Choice, and the backend that it answers; each chunk is one token."""

    def __init__(self, chunks: list[Chunk], fails: bool) -> None:
        self._chunks = chunks
        self._fails = fails

    async def generate(self, asked: GenerationRequest) -> AsyncGenerator[Delta, None]:
        for number, chunk in enumerate(self._chunks):
            yield Delta(json.dumps(chunk), (Token(number),), chunk["finish_reason"])
        if self._fails:
            raise failed("broken")

    def chunks(self, delta: Delta) -> list[Chunk]:
        return [json.loads(delta.text)]


def job_of(*chunks: Chunk, fails: bool = False, **sampling: Any) -> CompletionJob:
    written: Any = Written(list(chunks), fails)
    return CompletionJob(
        context=RequestContext(cast(Backend, written), RENDERER, Settings(), Caller()),
        base=base_model(), requests=[GenerationRequest([1, 2, 3], sampling=sampling)],
        id_prefix="", object="", chunk_object="", model=ResolvedModel("upper", "upper"),
        choice=lambda _: written, prompt_tokens=3, usage_in_stream="no chunk",
    )  # fmt: skip


def streamed(turn: Turn) -> list[dict[str, Any]]:
    """The data of the events, of which each is framed under its type."""

    async def run() -> bytes:
        deltas = turn.job.deltas()
        return b"".join([part async for part in turn_events(turn, await anext(deltas), deltas)])

    found: list[dict[str, Any]] = []
    for frame in asyncio.run(run()).decode().removesuffix("\n\n").split("\n\n"):
        event, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert event == f"event: {found[-1]['type']}"
    return found


def whole(turn: Turn) -> dict[str, Any]:
    return asyncio.run(whole_turn(turn))


def types_of(events: list[dict[str, Any]], field: str = "type") -> list[str]:
    return [event[field] for event in events]


def alike(make: Callable[[], Turn], last: dict[str, Any]) -> None:
    """What a stream ends in is the whole answer, but for its ids."""
    assert _without_ids(whole(make())) == _without_ids(last)


def _without_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: _without_ids(item) for name, item in value.items() if name != "id"}


def _chunk(delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> Chunk:
    return {"delta": delta, "logprobs": logprobs, "finish_reason": None}
