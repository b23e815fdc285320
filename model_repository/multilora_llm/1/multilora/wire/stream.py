"""What goes back to a client: a Stream of Responses.

The streams of a request for several answers share its client: see JointClient.
"""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

from multilora.errors import RequestError
from multilora.request import FinishReason, PromptToken, TokenOutput
from multilora.wire.response import JointResponse, Response, SharedResponse, logprobs
from multilora.wire.triton_request import TritonRequest
from multilora_api.tensors import RUNNING
from multilora_text.detokenizer import Detokenizer
from multilora_text.tokenizer import Tokenizer

_GATHER_SECONDS = 0.05
_KEPT_TEXTS = 200_000  # of tokens; about one vocabulary


class Client(Protocol):
    """The way back to whoever sent a request. Nothing may follow a final response or an error."""

    outputs: frozenset[str]  # optional outputs, known once the request is parsed

    def send(self, response: Response | JointResponse | SharedResponse) -> None: ...

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

    def send(self, response: Response | JointResponse | SharedResponse) -> None:
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
        entries = logprobs(token, lambda ids: _shown(self._tokenizer, *ids))
        return json.dumps(entries, ensure_ascii=False)


@lru_cache(maxsize=_KEPT_TEXTS)
def _shown(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.decode([token_id], skip_special_tokens=False)
