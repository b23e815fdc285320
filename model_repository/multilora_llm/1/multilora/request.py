"""What a client asks for (Request, SamplingParams) and what it gets per step (TokenOutput)."""

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from multilora.errors import RequestError, invalid

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 128
MAX_LOGIT_BIAS = 100.0
ADAPTER_TIMEOUT = 600.0  # seconds; a first download is slow
_UINT64 = 1 << 64


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"  # end-of-sequence token or a stop string
    LENGTH = "length"  # max_tokens, or no room left below max_total_tokens
    CANCELLED = "cancelled"  # aborted by the client
    ERROR = "error"  # see TokenOutput.error


@dataclass(frozen=True)
class Grammar:
    """What the whole answer must match: `text` is a JSON schema or a regular expression."""

    kind: Literal["json", "regex"]
    text: str


@dataclass(frozen=True)
class SamplingParams:
    """How to pick tokens. Checked on construction; raises RequestError(INVALID_ARG).

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 switch those filters off. Penalties act on
    prompt and output (`repetition_penalty`) or output only (`presence_`, `frequency_penalty`).
    `typical_p` 1 switches locally typical sampling off. `logit_bias` holds (token id, what is added
    to its logit), each id once. From `min_tokens` on, one of `stop_token_ids` ends the answer as
    end-of-sequence does, also where that is ignored. `grammar` binds the answer, which ends as soon
    as it is complete and cannot go on, whatever `ignore_eos` says.
    `logprobs` is how many most likely tokens to report beside the chosen one; None reports nothing.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        for name, ok, rule in self._rules():
            if not ok:
                raise invalid(f"{name} must be {rule}; got {getattr(self, name)}")
        if len(self.stop) > MAX_STOP_STRINGS or not all(self.stop):
            raise invalid(
                f"stop_words must be at most {MAX_STOP_STRINGS} strings, none empty; "
                f"got {list(self.stop)}"
            )
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            raise invalid(
                f"stop_token_ids must be at most {MAX_STOP_TOKENS} token ids; send fewer than "
                f"{len(self.stop_token_ids)}"
            )
        for token_id, bias in self.logit_bias:
            if token_id < 0 or not _within(bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS):
                raise invalid(
                    "logit_bias must map token ids to numbers between -100 and 100; "
                    f"got {bias} for {token_id}"
                )

    def _rules(self) -> list[tuple[str, bool, str]]:
        """(field, holds, what it must be)"""
        repetition, top = self.repetition_penalty, self.logprobs
        return [
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, "between 0 and max_tokens"),
            ("temperature", _within(self.temperature, 0, 100), "0 (greedy) or up to 100"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (off) or positive"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("typical_p", 0 < self.typical_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0.01 <= repetition <= 100, "0.01 to 100 (1 is off)"),
            ("presence_penalty", _within(self.presence_penalty, -2, 2), "between -2 and 2"),
            ("frequency_penalty", _within(self.frequency_penalty, -2, 2), "between -2 and 2"),
            ("seed", self.seed is None or 0 <= self.seed < _UINT64, "between 0 and 2**64 - 1"),
            ("logprobs", top is None or 0 <= top <= MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}"),
        ]

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class Request:
    """One generation. `adapter_id` "" is the base model. Filled by the Triton thread.

    `adapter_timeout` is how many seconds to wait for an adapter that is being loaded,
    `adapter_token` the Hub token to download it with ("": the server's own); never shown.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    adapter_id: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    adapter_timeout: float = ADAPTER_TIMEOUT
    adapter_token: str = field(default="", repr=False)


@dataclass(frozen=True)
class TokenOutput:
    """What one step did for one request. Filled by Scheduler.postprocess, or by an abort.

    `token_id` is None when the request ends without a token (cancelled, error). `logprob` is the
    natural logarithm of the probability before temperature and filters; `top_logprobs` holds
    (token_id, logprob), most likely first, when SamplingParams.logprobs asked for them.
    `queue_time` is how many seconds the request waited before it first ran; None: it never did.
    """

    request_id: str
    token_id: int | None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    error: RequestError | None = None
    queue_time: float | None = None


def _within(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high
