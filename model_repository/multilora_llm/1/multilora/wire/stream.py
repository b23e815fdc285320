"""One request on its way out: the tokens and text its client has not been sent yet."""

from collections.abc import Sequence
from typing import Protocol

from multilora.errors import RequestError
from multilora.request import FinishReason, TokenOutput
from multilora.wire.reply import Reply
from multilora.wire.triton_request import TritonRequest
from multilora_api.tensors import RUNNING
from multilora_text.detokenizer import Detokenizer
from multilora_text.tokenizer import Tokenizer


class Client(Protocol):
    """The way back to whoever sent a request. Nothing may follow a final reply or an error."""

    def send(self, reply: Reply) -> None: ...

    def fail(self, error: RequestError) -> None: ...

    def is_cancelled(self) -> bool: ...


class Stream:
    """Responder thread only. Times are those of time.monotonic()."""

    def __init__(
        self, request: TritonRequest, client: Client, tokenizer: Tokenizer, arrived_at: float
    ) -> None:
        self.request = request
        self.client = client
        self.arrived_at = arrived_at
        self.last_token_at: float | None = None
        self._detokenizer = Detokenizer(tokenizer, request.request.sampling.stop)
        prompt = request.request.prompt_token_ids
        self._num_input_tokens = len(prompt)
        self._text = tokenizer.decode(prompt) if request.echo else ""
        self._tokens: list[TokenOutput] = []
        self._cumulative_logprob = 0.0
        self._queue_time = 0.0

    def push(self, tokens: Sequence[TokenOutput]) -> bool:
        """Take new tokens, up to the one that completes a stop string; True when there is one."""
        for token in tokens:
            self._tokens.append(token)
            self._cumulative_logprob += token.logprob or 0.0
            self._queue_time = token.queue_time or 0.0
            if token.token_id is None:
                continue
            if token.finish_reason is not FinishReason.STOP:  # that is end-of-sequence: no text
                self._text += self._detokenizer.push(token.token_id)
            if token.finish_reason is not None:
                self._text += self._detokenizer.flush()
            if self._detokenizer.stopped:
                return True
        return False

    def take_reply(self, reason: FinishReason | None) -> Reply | None:
        """What to send now; None when it is better to wait for more."""
        if reason is None and not (self.request.stream and self._text):
            return None
        reply = Reply(
            self._text,
            tuple(self._tokens),
            reason.value if reason else RUNNING,
            self._num_input_tokens,
            self._cumulative_logprob,
            self._queue_time,
        )
        self._text = ""
        self._tokens = []
        return reply
