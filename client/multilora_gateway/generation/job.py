"""One generation as the gateway sees it: what is asked of the engine, and what comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    """One sequence. `adapter_id` "" is the base model.

    `sampling` holds values by the engine's names of `sampling_parameters`. `adapter_timeout` is in
    seconds; None leaves it to the server. `adapter_token` opens private Hub repositories.
    """

    prompt_ids: Sequence[int]
    adapter_id: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    adapter_timeout: float | None = None
    adapter_token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Token:
    """`logprob` is None unless Call.sampling asks for logprobs; `top` is most likely first."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one response adds. `text` is cut at stop strings, `tokens` are not.

    `finish_reason` ("stop" or "length") is in the last one only; `queue_seconds` is how long the
    request waited in the engine, None as long as the server does not say.
    """

    text: str
    tokens: tuple[Token, ...]
    finish_reason: str | None = None
    queue_seconds: float | None = None


@dataclass(frozen=True)
class Answer:
    """All pieces of a generation together."""

    text: str
    tokens: tuple[Token, ...]
    finish_reason: str
    queue_seconds: float | None = None

    @staticmethod
    def joined(pieces: Sequence[Piece]) -> "Answer":
        """Of a whole stream, at least one piece."""
        return Answer(
            "".join(piece.text for piece in pieces),
            tuple(token for piece in pieces for token in piece.tokens),
            pieces[-1].finish_reason or "stop",
            next((p.queue_seconds for p in pieces if p.queue_seconds is not None), None),
        )
