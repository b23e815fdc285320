"""What a client asks for (Request, SamplingParams) and what it gets per step (TokenOutput)."""

import math
from dataclasses import dataclass, field
from enum import Enum

from multilora.errors import RequestError, invalid

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
_UINT64 = 1 << 64


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"  # end-of-sequence token or a stop string
    LENGTH = "length"  # max_tokens, or no room left below max_total_tokens
    CANCELLED = "cancelled"  # aborted by the client
    ERROR = "error"  # see TokenOutput.error


@dataclass(frozen=True)
class SamplingParams:
    """How to pick tokens. Checked on construction; raises RequestError(INVALID_ARG).

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 switch those filters off. Penalties act on
    prompt and output (`repetition_penalty`) or output only (`presence_`, `frequency_penalty`).
    `logprobs` is how many most likely tokens to report beside the chosen one; None reports nothing.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _check("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1")
        _check(
            "min_tokens",
            self.min_tokens,
            0 <= self.min_tokens <= self.max_tokens,
            "between 0 and max_tokens",
        )
        _check(
            "temperature",
            self.temperature,
            _within(self.temperature, 0, 100),
            "0 (greedy) or a positive number up to 100",
        )
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (off) or positive")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1")
        _check(
            "repetition_penalty",
            self.repetition_penalty,
            0 < self.repetition_penalty and math.isfinite(self.repetition_penalty),
            "a positive number (1 is off)",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(name, value, _within(value, -2, 2), "between -2 and 2")
        _check(
            "seed",
            self.seed,
            self.seed is None or 0 <= self.seed < _UINT64,
            "between 0 and 2**64 - 1",
        )
        _check(
            "logprobs",
            self.logprobs,
            self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
            f"between 0 and {MAX_LOGPROBS}",
        )
        _check(
            "stop_words",
            list(self.stop),
            len(self.stop) <= MAX_STOP_STRINGS and all(self.stop),
            f"at most {MAX_STOP_STRINGS} strings, none empty",
        )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class Request:
    """One generation. `adapter_id` "" is the base model. Filled by the Triton thread."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    adapter_id: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True)
class TokenOutput:
    """What one step did for one request. Filled by Scheduler.postprocess, or by an abort.

    `token_id` is None when the request ends without a token (cancelled, error). `logprob` is the
    natural logarithm of the probability before temperature and filters; `top_logprobs` holds
    (token_id, logprob), most likely first, when SamplingParams.logprobs asked for them.
    """

    request_id: str
    token_id: int | None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    error: RequestError | None = None


def _within(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high


def _check(name: str, value: object, ok: bool, rule: str) -> None:
    if not ok:
        raise invalid(f"{name} must be {rule}; got {value}")
