"""A Request on its way through the engine: its tokens, its KV blocks, its status."""

from array import array
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from multilora.request import BASE_ONLY, AdapterSet, FinishReason, Request


class TokenMatcher(Protocol):
    """Which tokens a sequence may go on with; engine thread only. GrammarCache makes them.

    After an `error` (None: all is well) it says nothing of use; the sequence should end.
    """

    error: str | None

    def allowed(self) -> bytes:
        """One bit per token id, the lowest bit of the first byte first: 1 = may come next.

        When the text is complete and cannot go on, only end-of-sequence may.
        """
        ...

    def accept(self, token_id: int) -> None:
        """The sequence goes on with this token, which is no end-of-sequence."""
        ...


class SequenceStatus(Enum):
    WAITING = auto()  # holds no KV block, and its adapter only when it was preempted
    RUNNING = auto()  # holds both
    FINISHED = auto()  # holds no KV block, and its adapter until no pass with it is in flight


@dataclass(eq=False)
class Sequence:
    """Mutable state of one request; owned by the engine thread.

    `token_ids` is prompt then output, as far as the host knows it. `passes_in_flight` counts the
    passes with this sequence that were scheduled and not read yet; `num_computed_tokens` the tokens
    whose K and V stand in the cache once these have run. `block_table[i]` is the KV block of tokens
    [i * block_size, (i + 1) * block_size). `block_digests` names those of its blocks that are full
    (see kv_blocks). `adapters` is the content identity of the adapter versions this sequence runs
    on; the scheduler sets it on the first admission, and every use of pages or prefix hashes goes
    through it. `admitted` says that the sequence has run before: if it waits, it was preempted and
    has had its turn. `matcher` has accepted the output tokens of a request with a grammar; they
    stay when it is preempted. `own_end_ids` end it beside the base model's end tokens: its
    adapters' own, set with `adapters`. `queue_time` is how many seconds the request waited for its
    first pass. `num_scored_tokens` counts the prompt tokens whose logprobs have been told, where
    they are asked for; the first has none.
    """

    request: Request
    arrival: int = 0  # order of submission, set by Scheduler.add
    adapters: AdapterSet = BASE_ONLY
    token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    passes_in_flight: int = 0
    block_table: "array[int]" = field(default_factory=lambda: array("i"))
    block_digests: list[bytes] = field(default_factory=list)
    admitted: bool = False
    matcher: TokenMatcher | None = None
    own_end_ids: frozenset[int] = frozenset()
    queue_time: float | None = None
    num_scored_tokens: int = 1
    status: SequenceStatus = SequenceStatus.WAITING

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_tokens_in_flight(self) -> int:
        """Tokens that passes in flight sample, or would but for max_tokens 0: the sequence is so
        much longer than is known."""
        return max(0, self.num_computed_tokens + 1 - len(self.token_ids))

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) + self.num_tokens_in_flight - self.num_computed_tokens

    @property
    def num_cacheable_tokens(self) -> int:
        """Tokens from the first on whose K and V may be taken from the cache: their logits are not
        needed. The last one's give the next token, and those before a prompt token its logprob."""
        most = len(self.token_ids) - 1
        return min(most, self.num_scored_tokens - 1) if self.unscored else most

    @property
    def unscored(self) -> range:
        """The places in the prompt whose logprobs are asked for and have not been told."""
        if self.request.sampling.prompt_logprobs is None:
            return range(0)
        return range(self.num_scored_tokens, self.num_prompt_tokens)

    @property
    def num_tokens_to_come(self) -> int:
        """Output tokens at most."""
        return self.request.sampling.max_tokens - self.num_output_tokens

    @property
    def cost(self) -> int:
        """Tokens of prompt and output, at most: what its turn costs."""
        return self.num_prompt_tokens + self.request.sampling.max_tokens

    @property
    def awaits_tokens(self) -> bool:
        """Whether the host must know the tokens in flight before it can say what may come next."""
        return bool(self.matcher or self.request.banned) and self.num_tokens_in_flight > 0

    def is_complete(self, max_total_tokens: int) -> bool:
        """Whether the tokens in flight are the last ones, whatever they are."""
        in_flight = self.num_tokens_in_flight
        most = self.num_prompt_tokens + self.request.sampling.max_tokens
        # A prompt alone (max_tokens 0) is complete once all of it is on its way.
        return in_flight > 0 and len(self.token_ids) + in_flight >= min(most, max_total_tokens)

    def append(
        self, token_id: int, eos_token_ids: frozenset[int], max_total_tokens: int
    ) -> FinishReason | None:
        """Take a sampled token; the reason when it is the last one."""
        self.token_ids.append(token_id)
        sampling, matcher = self.request.sampling, self.matcher
        is_end = token_id in eos_token_ids or token_id in self.own_end_ids
        if is_end and (matcher or not sampling.ignore_eos):
            return FinishReason.STOP
        if token_id in sampling.stop_token_ids and self.num_output_tokens >= sampling.min_tokens:
            return FinishReason.STOP
        if matcher:
            matcher.accept(token_id)
        if self.num_output_tokens >= sampling.max_tokens or len(self.token_ids) >= max_total_tokens:
            return FinishReason.LENGTH
        return None
