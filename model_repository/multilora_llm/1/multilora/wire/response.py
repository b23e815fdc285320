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
from multilora_api.tensors import PROMPT_LOGPROBS, REQUEST_ID, RUNNING

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
        return _arrays((self,), (outputs,), outputs, decode)


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
        asked = (outputs,) * len(self.parts)
        return _arrays(self.parts, asked, outputs, decode, of_prompt=self.parts[:1])


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
        outputs = _OF_SHARED.union(*asked)
        return {REQUEST_ID.name: _strings(ids), **_arrays(parts, asked, outputs, decode)}


def _arrays(
    parts: Sequence[Response],
    asked: Sequence[frozenset[str]],
    outputs: frozenset[str],
    decode: Decode,
    of_prompt: Sequence[Response] | None = None,
) -> dict[str, np.ndarray]:
    """`asked` are those of `outputs` that are for each part; `of_prompt` have a column in what is
    said of the prompt, all unless given."""
    ids = [token.token_id for part in parts for token in part.tokens]
    prompts = parts if of_prompt is None else of_prompt
    arrays = {
        "text_output": _strings([part.text for part in parts]),
        "output_ids": _row(ids, np.int32),
    }
    if "finish_reason" in outputs:
        arrays["finish_reason"] = _strings([part.finish_reason for part in parts])
    if "num_input_tokens" in outputs:
        counts = [part.num_input_tokens for part in prompts]
        arrays["num_input_tokens"] = _row(counts, np.uint32)
    if "num_output_tokens" in outputs:
        arrays["num_output_tokens"] = _row([len(part.tokens) for part in parts], np.uint32)
    if "cumulative_logprob" in outputs:
        sums = [part.cumulative_logprob for part in parts]
        arrays["cumulative_logprob"] = _row(sums, np.float32)
    if "queue_time" in outputs:
        arrays["queue_time"] = _row([part.queue_time for part in prompts], np.float32)
    if "logprobs" in outputs:
        told = [
            _told(part, decode) if part.shows_logprobs and "logprobs" in own else "null"
            for part, own in zip(parts, asked, strict=True)
        ]
        arrays["logprobs"] = _strings(told)
    if PROMPT_LOGPROBS.name in outputs:
        arrays[PROMPT_LOGPROBS.name] = _strings([f"[{', '.join(part.prompt)}]" for part in prompts])
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
