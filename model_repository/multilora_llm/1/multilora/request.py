"""What a client asks for (Request), what can be served (RequestLimits) and what a step gives for
it (TokenOutput)."""

import dataclasses
import time
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import NamedTuple

from multilora.errors import RequestError, invalid
from multilora_api.sampling import SamplingParams

ADAPTER_TIMEOUT = 600.0  # seconds; a first download is slow


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"  # end-of-sequence token or a stop string
    LENGTH = "length"  # max_tokens, or no room left below max_total_tokens
    CANCELLED = "cancelled"  # aborted by the client
    ERROR = "error"  # see TokenOutput.error


class AdapterWeight(NamedTuple):
    """`adapter` is an id or, once it has been loaded, a key: the identity of its content."""

    adapter: str
    weight: float = 1.0


class AdapterSet(tuple[AdapterWeight, ...]):
    """The adapters that act on a sequence together; empty: the base model alone.

    Queues, batches and the prefix cache have it as their key. Sets have one element for now.
    """

    __slots__ = ()

    @classmethod
    def of(cls, adapter: str) -> "AdapterSet":
        """The set of one adapter, "" for none."""
        return cls((AdapterWeight(adapter),) if adapter else ())

    @property
    def only(self) -> str:
        """The adapter of a set of one, "" of none; ValueError for several."""
        if not self:
            return ""
        ((adapter, _),) = self
        return adapter


BASE_ONLY = AdapterSet()


@dataclass(frozen=True)
class Request:
    """One generation. `adapter_id` "" is the base model. Filled by the Triton thread.

    `arrived_at` is when it came (time.monotonic()). `adapter_timeout` is how many seconds to wait
    for an adapter that is being loaded, `adapter_token` the Hub token to download it with ("": the
    server's own); never shown. `banned` holds rows of token ids that the output must not complete:
    its bad_words.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    adapter_id: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    adapter_timeout: float = ADAPTER_TIMEOUT
    adapter_token: str = field(default="", repr=False)
    banned: tuple[tuple[int, ...], ...] = ()
    arrived_at: float = field(default_factory=time.monotonic, compare=False)

    @cached_property
    def adapters(self) -> AdapterSet:
        """By id; see Sequence.adapters for the version that runs."""
        return AdapterSet.of(self.adapter_id)

    @cached_property
    def allowed_bits(self) -> bytes:
        """Of allowed_token_ids, as TokenMatcher.allowed gives them; none where any token may come.
        There may be fewer bits than token ids."""
        ids = self.sampling.allowed_token_ids
        bits = bytearray(max(ids) // 8 + 1 if ids else 0)
        for token_id in ids:
            bits[token_id >> 3] |= 1 << (token_id & 7)
        return bytes(bits)


class PromptToken(NamedTuple):
    """What the tokens before it said of a token of a prompt; fields as those of TokenOutput."""

    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]
    rank: int


@dataclass(frozen=True)
class TokenOutput:
    """What one step did for one request. Filled by Scheduler.postprocess, or by an abort.

    `token_id` is None when there is no token: the request ends without one (cancelled, error,
    max_tokens 0), or the step computed a part of the prompt whose logprobs were asked for: those
    of the next tokens of `prompt`, whose first token has none. `logprob` is the
    natural logarithm of the probability before temperature and filters; `top_logprobs` holds
    (token_id, logprob), most likely first, when SamplingParams.logprobs asked for them.
    `rank` of the token is 1 more than how many were likelier, where logprobs were asked for.
    `queue_time` is how many seconds the request waited before it first ran; None: it never did.
    """

    request_id: str
    token_id: int | None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    rank: int | None = None
    finish_reason: FinishReason | None = None
    error: RequestError | None = None
    queue_time: float | None = None
    prompt: tuple[PromptToken, ...] = ()


@dataclass(frozen=True)
class RequestLimits:
    """Which requests the engine can ever serve. Filled by the engine."""

    max_input_tokens: int
    max_total_tokens: int
    vocab_size: int

    def check(self, request: Request) -> None:
        """Raises RequestError (INVALID_ARG)."""
        count, sampling = len(request.prompt_token_ids), request.sampling
        self.check_prompt(count)
        if count + sampling.max_tokens > self.max_total_tokens:
            raise invalid(
                f"prompt ({count} tokens) + max_tokens ({sampling.max_tokens}) exceed "
                f"max_total_tokens {self.max_total_tokens}; lower max_tokens to at most "
                f"{self.max_total_tokens - count} or raise --max-total-tokens"
            )
        self.check_ids("input_ids", request.prompt_token_ids)
        for name in ("stop_token_ids", "allowed_token_ids"):
            if token_ids := getattr(sampling, name):
                self.check_ids(name, token_ids)
        if sampling.logit_bias:
            self.check_ids("logit_bias", tuple(token_id for token_id, _ in sampling.logit_bias))

    def granted(self, request: Request) -> Request:
        """The request with as few max_tokens, and min_tokens, as leave room for its prompt."""
        sampling = request.sampling
        most = max(1, self.max_total_tokens - len(request.prompt_token_ids))
        if sampling.max_tokens <= most:
            return request
        least = min(sampling.min_tokens, most)
        sampling = dataclasses.replace(sampling, max_tokens=most, min_tokens=least)
        return dataclasses.replace(request, sampling=sampling)

    def check_prompt(self, count: int) -> None:
        """Raises RequestError (INVALID_ARG) unless `count` tokens can be a prompt."""
        if count == 0:
            raise invalid("input_ids is empty; send at least one token")
        if count > self.max_input_tokens:
            raise invalid(
                f"the prompt has {count} tokens but max_input_tokens is {self.max_input_tokens}; "
                "shorten it or raise --max-input-tokens"
            )

    def check_ids(self, name: str, token_ids: tuple[int, ...]) -> None:
        """Raises RequestError (INVALID_ARG) unless there are such tokens."""
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= self.vocab_size:
            raise invalid(
                f"{name} holds {low if low < 0 else high}; token ids of this base model are "
                f"0 to {self.vocab_size - 1}"
            )
