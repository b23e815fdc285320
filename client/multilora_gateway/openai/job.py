"""A request to the OpenAI API, checked and ready: what to ask the engine, what to call it."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.served_model import BaseModel
from multilora_gateway.generation.job import Answer, Call, Piece
from multilora_gateway.generation.model_name import Target
from multilora_gateway.http.access import Caller
from multilora_gateway.settings import Settings


@dataclass(frozen=True)
class Place:
    """Where a request arrived, and who sent it."""

    backend: Backend
    settings: Settings
    caller: Caller


class Choice(Protocol):
    """Turns one generation into the JSON of its choice. Use one instance for one answer."""

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before anything is generated; `index` is added to each."""
        ...

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """The chunks that a piece brings."""
        ...

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""
        ...


@dataclass(frozen=True)
class Job:
    """`choice(number)` renders the answer to `calls[number]`. `kind` is the prefix of the id.

    `prompt_tokens` counts each prompt once, however many choices it has.
    """

    kind: str
    object: str
    chunk_object: str
    target: Target
    base: BaseModel
    calls: list[Call]
    choice: Callable[[int], Choice]
    prompt_tokens: int
    with_usage: bool

    def head(self, chunk: bool) -> dict[str, Any]:
        """The fields that answers begin with; one call per answer, for its id is new."""
        return {
            "id": f"{self.kind}-{uuid.uuid4().hex}",
            "object": self.chunk_object if chunk else self.object,
            "created": int(time.time()),
            "model": self.target.name,
            "system_fingerprint": None,
        }

    def usage(self, completion_tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }
