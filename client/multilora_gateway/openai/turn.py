"""A chat for the APIs whose answers are not choices but lists: items, or blocks of content.

Laws: such a request becomes a chat, so that its prompt, sampling, limits and errors are those of
/v1/chat/completions; its answer is read from the chunks of that chat. A whole answer is its stream
put together.
"""

import contextlib
import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from multilora_gateway.backend.messages import Delta
from multilora_gateway.errors import GatewayError, invalid
from multilora_gateway.generation.parallel import NumberedDelta
from multilora_gateway.http.json_values import Absent, False_, only
from multilora_gateway.http.streaming import until_disconnected
from multilora_gateway.openai.chat import ChatBody
from multilora_gateway.openai.job import CompletionJob, stream_response
from multilora_gateway.openai.sampling import CompletionFields

BlockKind = Literal["reasoning", "text", "call"]
Event = dict[str, Any]  # has a `type`
_SHOWN = 50  # characters of a client's own words in an error


class TurnFields(CompletionFields):
    """What such a body shares with a chat. None is the same as absent."""

    chat_template_kwargs: dict[str, Any] | None = None
    n: Annotated[Any, only(1)] = None
    prompt_logprobs: Absent = None
    return_token_ids: False_ = None

    def chat(self, **own: Any) -> ChatBody:
        """The chat with the fields that both have, and `own`, which are of a chat's types."""
        shared = {name: getattr(self, name) for name in TurnFields.model_fields}
        return ChatBody.model_construct(**{**shared, **own})


def text_parts(where: str, content: Any, kinds: Sequence[str], param: str) -> list[dict[str, str]]:
    """A text, or parts that hold texts, as the parts of a chat's message; raises GatewayError."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise invalid(f"{where} must be a string, or a list of parts with text", param)
    return [
        {"type": "text", "text": text_part(f"{where}.{number}", part, kinds, param)}
        for number, part in enumerate(content)
    ]


def text_part(where: str, part: Any, kinds: Sequence[str], param: str) -> str:
    """The text of a part; raises GatewayError."""
    kind, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else ("", None)
    if kind not in kinds or not isinstance(text, str):
        raise invalid(
            f"{where} has the type {str(kind)[:_SHOWN]!r}; this model reads only text: "
            f'{{"type": "{kinds[0]}", "text": "…"}}',
            param,
        )
    return text


@dataclass
class Block:
    """A part of an answer while it grows: reasoning, text, or a call, whose `text` is the JSON of
    its arguments."""

    kind: BlockKind
    number: int
    id: str
    call_id: str = ""
    name: str = ""
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class Turn(ABC):
    """One answer, and the events that tell it. `output_tokens` counts what was generated so far,
    `reasoning_tokens` what of it was reasoning. `reason` is the chat's finish_reason, None as long
    as the answer grows."""

    def __init__(self, job: CompletionJob, id_prefix: str) -> None:
        self.job = job
        self.id = f"{id_prefix}_{uuid.uuid4().hex}"
        self.blocks: list[Block] = []
        self.output_tokens = self.reasoning_tokens = 0
        self.reason: str | None = None
        self._choice = job.choice(0)
        self._open: Block | None = None
        self._logprobs: list[dict[str, Any]] = []  # those whose text no chunk has brought yet
        self._tokens_before = 0  # the delta that is being read

    @abstractmethod
    def opening(self) -> list[Event]:
        """Before anything is generated."""

    @abstractmethod
    def begun(self, block: Block) -> list[Event]: ...

    @abstractmethod
    def grown(self, block: Block, text: str, logprobs: list[dict[str, Any]]) -> list[Event]: ...

    @abstractmethod
    def ended(self, block: Block) -> list[Event]: ...

    @abstractmethod
    def closing(self) -> list[Event]:
        """After the last block, when `reason` is known."""

    @abstractmethod
    def failed(self, error: GatewayError) -> list[Event]:
        """Instead of what would have followed."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The answer that is not streamed."""

    def push(self, delta: Delta) -> list[Event]:
        """The events that a delta brings."""
        self._tokens_before = self.output_tokens
        self.output_tokens += len(delta.tokens)
        return [event for chunk in self._choice.chunks(delta) for event in self._read(chunk)]

    def _read(self, chunk: dict[str, Any]) -> list[Event]:
        delta, events = chunk["delta"], list[Event]()
        self._logprobs += (chunk["logprobs"] or {}).get("content") or ()
        if reasoning := delta.get("reasoning_content"):
            events += self._grow("reasoning", reasoning)
        if text := delta.get("content"):
            events += self._grow("text", text)
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                events += self._end() + self._begin("call", call["id"], call["function"]["name"])
            events += self._grow("call", call["function"].get("arguments") or "")
        if reason := chunk["finish_reason"]:
            self.reason = reason
            in_text = self._open is not None and self._open.kind == "text"
            if not self.blocks or (in_text and self._logprobs):  # clients look for a text
                events += self._grow("text", "")
            self._tokens_before = self.output_tokens
            events += self._end() + self.closing()
        return events

    def _grow(self, kind: BlockKind, text: str) -> list[Event]:
        events: list[Event] = []
        if self._open is None or self._open.kind != kind:
            events += self._end() + self._begin(kind)
        block = self._open
        assert block is not None
        logprobs, self._logprobs = self._logprobs if kind == "text" else [], []
        if text or logprobs:
            block.text += text
            block.logprobs += logprobs
            events += self.grown(block, text, logprobs)
        return events

    def _begin(self, kind: BlockKind, call_id: str = "", name: str = "") -> list[Event]:
        block = Block(kind, len(self.blocks), uuid.uuid4().hex, call_id, name)
        self.blocks.append(block)
        self._open = block
        return self.begun(block)

    def _end(self) -> list[Event]:
        block, self._open = self._open, None
        if block is None:
            return []
        if block.kind == "reasoning":
            self.reasoning_tokens = self._tokens_before
        return self.ended(block)


async def respond_in_turn(request: Request, turn: Turn, stream: bool) -> Response:
    """Runs the job of a turn. Raises GatewayError before the first delta."""
    if stream:
        return await stream_response(request, turn.job, lambda *deltas: turn_events(turn, *deltas))
    return JSONResponse(await until_disconnected(request, whole_turn(turn)))


async def whole_turn(turn: Turn) -> dict[str, Any]:
    """The JSON of the answer that is not streamed."""
    turn.opening()
    async with contextlib.aclosing(turn.job.deltas()) as deltas:
        async for _, delta in deltas:
            turn.push(delta)
    return turn.whole()


async def turn_events(
    turn: Turn, first: NumberedDelta, deltas: AsyncGenerator[NumberedDelta, None]
) -> AsyncGenerator[bytes, None]:
    """The stream of a turn whose first delta is known."""
    yield _framed(turn.opening())
    item: NumberedDelta | None = first
    try:
        while item is not None:
            if events := turn.push(item[1]):
                yield _framed(events)
            item = await anext(deltas, None)
    except GatewayError as error:
        yield _framed(turn.failed(error))


def _framed(events: Sequence[Event]) -> bytes:
    return b"".join(map(_event, events))


def _event(event: Event) -> bytes:
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"event: {event['type']}\ndata: {text}\n\n".encode()
