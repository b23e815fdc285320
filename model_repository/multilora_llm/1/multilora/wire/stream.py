"""What goes back to a client: a Stream of Responses, each some text and tokens as named arrays.

The streams of a request for several answers share its client: see JointClient.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from multilora.errors import RequestError
from multilora.request import FinishReason, PromptToken, TokenOutput
from multilora.wire.triton_request import TritonRequest
from multilora_api.tensors import OF_THE_PROMPT, PROMPT_LOGPROBS, RUNNING
from multilora_text.detokenizer import Detokenizer
from multilora_text.tokenizer import Tokenizer

_GATHER_SECONDS = 0.05
_KEPT_TEXTS = 200_000  # of tokens; about one vocabulary


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

    def arrays(
        self, outputs: frozenset[str], decode: Callable[[list[int]], str]
    ) -> dict[str, np.ndarray]:
        """Output tensors by name: `text_output`, `output_ids` [1, n] and the asked `outputs`.

        `decode` gives the text of token ids for the logprobs.
        """
        ids = [token.token_id for token in self.tokens]
        arrays = {
            "text_output": _string(self.text),
            "output_ids": np.array([ids], dtype=np.int32).reshape(1, len(ids)),
        }
        if "finish_reason" in outputs:
            arrays["finish_reason"] = _string(self.finish_reason)
        if "num_input_tokens" in outputs:
            arrays["num_input_tokens"] = np.array([[self.num_input_tokens]], dtype=np.uint32)
        if "num_output_tokens" in outputs:
            arrays["num_output_tokens"] = np.array([[len(ids)]], dtype=np.uint32)
        if "cumulative_logprob" in outputs:
            arrays["cumulative_logprob"] = np.array([[self.cumulative_logprob]], dtype=np.float32)
        if "queue_time" in outputs:
            arrays["queue_time"] = np.array([[self.queue_time]], dtype=np.float32)
        if "logprobs" in outputs:
            entries = [_logprobs(token, decode) for token in self.tokens]
            shown = entries if self.shows_logprobs else None
            arrays["logprobs"] = _string(json.dumps(shown, ensure_ascii=False))
        if PROMPT_LOGPROBS.name in outputs:
            arrays[PROMPT_LOGPROBS.name] = _string(f"[{', '.join(self.prompt)}]")
        return arrays


@dataclass(frozen=True)
class JointResponse:
    """The responses of several answers, in their order."""

    parts: tuple[Response, ...]

    @property
    def final(self) -> bool:
        return all(part.final for part in self.parts)

    def arrays(
        self, outputs: frozenset[str], decode: Callable[[list[int]], str]
    ) -> dict[str, np.ndarray]:
        """As Response.arrays, with a column for each answer where that has a single one."""
        first, *others = [part.arrays(outputs, decode) for part in self.parts]
        for name in first.keys() - OF_THE_PROMPT:
            first[name] = np.concatenate([first[name], *(each[name] for each in others)], axis=1)
        return first


def stopped_response() -> Response:
    """The answer to stop = true: empty and final."""
    return Response("", finish_reason=FinishReason.CANCELLED.value)


def json_response(answer: dict[str, object]) -> Response:
    """The answer to an administrator: one final response whose text is JSON."""
    return Response(json.dumps(answer, ensure_ascii=False), finish_reason=FinishReason.STOP.value)


def _logprobs(
    token: TokenOutput | PromptToken, decode: Callable[[list[int]], str]
) -> dict[str, dict[str, object]]:
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


def _string(text: str) -> np.ndarray:
    # Paths of files in an answer may hold surrogates for bytes: see adapters/files.py.
    return np.array([[text.encode("utf-8", "surrogateescape")]], dtype=np.object_)


class Client(Protocol):
    """The way back to whoever sent a request. Nothing may follow a final response or an error."""

    outputs: frozenset[str]  # optional outputs, known once the request is parsed

    def send(self, response: Response | JointResponse) -> None: ...

    def fail(self, error: RequestError) -> None: ...

    def is_cancelled(self) -> bool: ...


class JointClient:
    """The client of a request for several answers; each of `parts` is the client of one of them.

    A stream gathers what all running answers have to say, or what came in _GATHER_SECONDS, into one
    response. When one answer fails, the request does, and the others see the client leave.
    """

    def __init__(self, client: Client, count: int, stream: bool) -> None:
        self._client = client
        self._stream = stream
        self._lock = threading.Lock()  # guards what follows
        self._news: list[Response | None] = [None] * count  # without text: nothing new
        self._silent = set(range(count))  # running, and nothing new
        self._running = set(range(count))
        self._sent_at = time.monotonic()
        self._ended = False
        self.parts = [_Part(self, number, client.outputs) for number in range(count)]

    def send(self, number: int, response: Response) -> None:
        """What the answer of that number says next."""
        with self._lock:
            if self._ended:
                return
            self._news[number] = _joined(self._news[number], response)
            self._silent.discard(number)
            if response.final:
                self._running.discard(number)
            self._ended = not self._running
            gathered = not self._silent or time.monotonic() >= self._sent_at + _GATHER_SECONDS
            if self._ended or (self._stream and gathered):
                unheard = replace(_blank(response), finish_reason=RUNNING, cumulative_logprob=0.0)
                parts = tuple(part or unheard for part in self._news)
                self._news = [part and _blank(part) for part in self._news]
                self._silent = set(self._running)
                self._sent_at = time.monotonic()
                self._client.send(JointResponse(parts))

    def fail(self, error: RequestError) -> None:
        with self._lock:
            if not self._ended:
                self._ended = True
                self._client.fail(error)

    def is_cancelled(self) -> bool:
        with self._lock:
            return self._ended or self._client.is_cancelled()


def _joined(before: Response | None, response: Response) -> Response:
    if before is None:
        return response
    return replace(
        response,
        text=before.text + response.text,
        tokens=before.tokens + response.tokens,
        prompt=before.prompt + response.prompt,
    )


def _blank(response: Response) -> Response:
    """Nothing new after it."""
    return replace(response, text="", tokens=(), prompt=())


class _Part:
    """A Client."""

    def __init__(self, joint: JointClient, number: int, outputs: frozenset[str]) -> None:
        self.outputs = outputs
        self._joint = joint
        self._number = number

    def send(self, response: Response | JointResponse) -> None:
        assert isinstance(response, Response)
        self._joint.send(self._number, response)

    def fail(self, error: RequestError) -> None:
        self._joint.fail(error)

    def is_cancelled(self) -> bool:
        return self._joint.is_cancelled()


class Stream:
    """Responder thread only. Times are those of time.monotonic()."""

    def __init__(self, request: TritonRequest, client: Client, tokenizer: Tokenizer) -> None:
        self.request = request
        self.client = client
        self.last_token_at: float | None = None
        sampling, prompt = request.request.sampling, request.request.prompt_token_ids
        self._shows_stop = sampling.include_stop_str_in_output
        self._detokenizer = Detokenizer(
            tokenizer, sampling.stop, self._shows_stop, sampling.skip_special_tokens
        )
        self._num_input_tokens = len(prompt)
        self._text = request.prompt_text(tokenizer) if request.echo else ""
        self._tokens: list[TokenOutput] = []
        self._cumulative_logprob = 0.0
        self._queue_time = 0.0
        self._tokenizer = tokenizer
        self._prompt = [] if sampling.prompt_logprobs is None else ["null"]

    def push(self, outputs: Sequence[TokenOutput]) -> bool:
        """Take news, up to the token that completes a stop string; True when there is one."""
        for token in outputs:
            self._prompt += map(self._told, token.prompt)
            self._queue_time = token.queue_time or self._queue_time
            if token.token_id is None:
                continue
            self._tokens.append(token)
            self._cumulative_logprob += token.logprob or 0.0
            # A token that ends the answer is no text; nor is end-of-sequence, which is special.
            if self._shows_stop or token.finish_reason is not FinishReason.STOP:
                self._text += self._detokenizer.push(token.token_id)
            if token.finish_reason is not None:
                self._text += self._detokenizer.flush()
            if self._detokenizer.stopped:
                return True
        return False

    def take_response(self, reason: FinishReason | None) -> Response | None:
        """What to send now; None when it is better to wait for more."""
        if reason is None and not (self.request.stream and self._text):
            return None
        response = Response(
            self._text,
            tuple(self._tokens),
            reason.value if reason else RUNNING,
            self._num_input_tokens,
            self._cumulative_logprob,
            self._queue_time,
            self.request.shows_logprobs,
            tuple(self._prompt),
        )
        self._text = ""
        self._tokens = []
        self._prompt = []
        return response

    def _told(self, token: PromptToken) -> str:
        """Made at once, because the text takes less memory than what it is made of."""
        entries = _logprobs(token, lambda ids: _shown(self._tokenizer, *ids))
        return json.dumps(entries, ensure_ascii=False)


@lru_cache(maxsize=_KEPT_TEXTS)
def _shown(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.decode([token_id], skip_special_tokens=False)
