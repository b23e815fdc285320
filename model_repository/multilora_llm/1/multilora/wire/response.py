"""What a client is told at once: text, tokens and counts as named arrays.

A Response is of one answer. JointResponse and SharedResponse put several side by side, a column for
each: those of one request, and those of many.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from multilora.request import FinishReason, PromptToken, TokenOutput
from multilora_api.tensors import OF_THE_PROMPT, PROMPT_LOGPROBS, REQUEST_ID, RUNNING

Decode = Callable[[list[int]], str]  # the text of token ids, for the logprobs
_OF_SHARED = frozenset(("finish_reason", "num_output_tokens"))


@dataclass(frozen=True)
class Response:
    """One response. A stream has several; `finish_reason` is RUNNING but for the last.

    `tokens` are those of this response only, as are the counts and logprobs made from them;
    `cumulative_logprob` sums over the whole answer so far. `prompt` has the JSON of what this
    response says of the prompt's tokens, one text for each; the first says of its token null.
    """

    text: str
    tokens: tuple[TokenOutput, ...] = ()
    finish_reason: str = RUNNING
    num_input_tokens: int = 0
    cumulative_logprob: float = 0.0
    queue_time: float = 0.0  # seconds, from arrival to the first pass
    shows_logprobs: bool = True
    prompt: tuple[str, ...] = ()

    @property
    def final(self) -> bool:
        return self.finish_reason != RUNNING

    def arrays(self, outputs: frozenset[str], decode: Decode) -> dict[str, np.ndarray]:
        """Output tensors by name: `text_output`, `output_ids` [1, n] and the asked `outputs`."""
        return _arrays((self,), (outputs,), decode)


@dataclass(frozen=True)
class JointResponse:
    """The responses of several answers, in their order."""

    parts: tuple[Response, ...]

    @property
    def final(self) -> bool:
        return all(part.final for part in self.parts)

    def arrays(self, outputs: frozenset[str], decode: Decode) -> dict[str, np.ndarray]:
        """As Response.arrays, with a column for each answer where that has a single one, but for
        what is said of the prompt."""
        return _arrays(self.parts, (outputs,) * len(self.parts), decode, one_prompt=True)


class SharedPart(NamedTuple):
    """What a request is told, and which `outputs` it asks for."""

    request_id: str  # the client's
    response: Response
    outputs: frozenset[str]


@dataclass(frozen=True)
class SharedResponse:
    """What several requests are told through their shared stream."""

    parts: tuple[SharedPart, ...]
    final: bool = False

    def arrays(self, outputs: frozenset[str], decode: Decode) -> dict[str, np.ndarray]:
        """As Response.arrays, with a column for each part, and `request_id`. What only others ask
        for is said of all parts, but for logprobs: null, and [] for those of a prompt."""
        if not self.parts:
            return {}
        ids, parts, asked = zip(*self.parts, strict=True)
        asked = tuple(_OF_SHARED | own for own in asked)
        return {REQUEST_ID.name: _strings(ids), **_arrays(parts, asked, decode)}


_NUMBERS: dict[str, tuple[Callable[[Response], float], type[np.generic]]] = {
    "num_input_tokens": (lambda part: part.num_input_tokens, np.uint32),
    "num_output_tokens": (lambda part: len(part.tokens), np.uint32),
    "cumulative_logprob": (lambda part: part.cumulative_logprob, np.float32),
    "queue_time": (lambda part: part.queue_time, np.float32),
}


def _arrays(
    parts: Sequence[Response],
    asked: Sequence[frozenset[str]],
    decode: Decode,
    one_prompt: bool = False,
) -> dict[str, np.ndarray]:
    """`asked` are the optional outputs for each part. `one_prompt`: it is that of all parts."""
    outputs = frozenset[str]().union(*asked)
    ids = [token.token_id for part in parts for token in part.tokens]
    arrays = {
        "text_output": _strings([part.text for part in parts]),
        "output_ids": _row(ids, np.int32),
    }

    def of(name: str) -> Sequence[Response]:
        return parts[:1] if one_prompt and name in OF_THE_PROMPT else parts

    if "finish_reason" in outputs:
        arrays["finish_reason"] = _strings([part.finish_reason for part in parts])
    for name, (number, dtype) in _NUMBERS.items():
        if name in outputs:
            arrays[name] = _row([number(part) for part in of(name)], dtype)
    if "logprobs" in outputs:
        told = [
            _told(part, decode) if part.shows_logprobs and "logprobs" in own else "null"
            for part, own in zip(parts, asked, strict=True)
        ]
        arrays["logprobs"] = _strings(told)
    if (name := PROMPT_LOGPROBS.name) in outputs:
        arrays[name] = _strings([f"[{', '.join(part.prompt)}]" for part in of(name)])
    return arrays


def stopped_response() -> Response:
    """The answer to stop = true: empty and final."""
    return Response("", finish_reason=FinishReason.CANCELLED.value)


def json_response(answer: dict[str, object]) -> Response:
    """The answer to an administrator: one final response whose text is JSON."""
    return Response(json.dumps(answer, ensure_ascii=False), finish_reason=FinishReason.STOP.value)


def _told(part: Response, decode: Decode) -> str:
    return json.dumps([logprobs(token, decode) for token in part.tokens], ensure_ascii=False)


def logprobs(token: TokenOutput | PromptToken, decode: Decode) -> dict[str, dict[str, object]]:
    """{token id: {logprob, rank, decoded_token}}; rank 1 is the likeliest token."""
    ranked = {
        token_id: (logprob, rank) for rank, (token_id, logprob) in enumerate(token.top_logprobs, 1)
    }
    # As likely as the last of the others, a token still comes after them.
    rank = max(token.rank or 1, len(ranked) + 1)
    chosen = {} if token.token_id in ranked else {token.token_id: (token.logprob, rank)}
    return {
        str(token_id): {
            "logprob": logprob,
            "rank": rank,
            "decoded_token": decode([token_id]),
        }
        for token_id, (logprob, rank) in {**chosen, **ranked}.items()
        if token_id is not None
    }


def _strings(texts: Iterable[str]) -> np.ndarray:
    # Paths of files in an answer may hold surrogates for bytes: see adapters/files.py.
    return np.array([[text.encode("utf-8", "surrogateescape") for text in texts]], dtype=np.object_)


def _row(values: Sequence[int | float | None], dtype: type[np.generic]) -> np.ndarray:
    return np.array(values, dtype=dtype).reshape(1, len(values))
