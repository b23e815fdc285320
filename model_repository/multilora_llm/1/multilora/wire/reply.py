"""What goes back to a client: one response's worth of text and tokens, as named arrays."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from multilora.request import FinishReason, TokenOutput
from multilora_api.tensors import RUNNING


@dataclass(frozen=True)
class Reply:
    """One response. A stream has several; `finish_reason` is RUNNING but for the last.

    `tokens` are those of this response only, as are the counts and logprobs made from them;
    `cumulative_logprob` sums over the whole answer so far.
    """

    text: str
    tokens: tuple[TokenOutput, ...] = ()
    finish_reason: str = RUNNING
    num_input_tokens: int = 0
    cumulative_logprob: float = 0.0
    queue_time: float = 0.0  # seconds, from arrival to the first pass

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
            arrays["logprobs"] = _string(json.dumps(entries, ensure_ascii=False))
        return arrays


def json_reply(answer: dict[str, object]) -> Reply:
    """The answer to an administrator: one final response whose text is JSON."""
    return Reply(json.dumps(answer, ensure_ascii=False), finish_reason=FinishReason.STOP.value)


def _logprobs(
    token: TokenOutput, decode: Callable[[list[int]], str]
) -> dict[str, dict[str, object]]:
    """{token id: {logprob, rank, decoded_token}}; rank is null beyond the reported ones."""
    ranked = {
        token_id: (logprob, rank) for rank, (token_id, logprob) in enumerate(token.top_logprobs, 1)
    }
    chosen = {} if token.token_id in ranked else {token.token_id: (token.logprob, None)}
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
    return np.array([[text.encode("utf-8")]], dtype=np.object_)
