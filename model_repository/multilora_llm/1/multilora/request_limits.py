"""RequestLimits: which requests the engine can ever serve. Pure."""

from dataclasses import dataclass

from multilora.errors import invalid
from multilora.request import Request


@dataclass(frozen=True)
class RequestLimits:
    """Filled by the engine."""

    max_input_tokens: int
    max_total_tokens: int
    vocab_size: int

    def check(self, request: Request) -> None:
        """Raises RequestError (INVALID_ARG)."""
        count, sampling = len(request.prompt_token_ids), request.sampling
        if count == 0:
            raise invalid("input_ids is empty; send at least one token")
        if count > self.max_input_tokens:
            raise invalid(
                f"the prompt has {count} tokens but max_input_tokens is {self.max_input_tokens}; "
                "shorten it or raise --max-input-tokens"
            )
        if count + sampling.max_tokens > self.max_total_tokens:
            raise invalid(
                f"prompt ({count} tokens) + max_tokens ({sampling.max_tokens}) exceed "
                f"max_total_tokens {self.max_total_tokens}; lower max_tokens to at most "
                f"{self.max_total_tokens - count} or raise --max-total-tokens"
            )
        self._check_ids("input_ids", request.prompt_token_ids)
        if sampling.stop_token_ids:
            self._check_ids("stop_token_ids", sampling.stop_token_ids)
        if sampling.logit_bias:
            self._check_ids("logit_bias", tuple(token_id for token_id, _ in sampling.logit_bias))

    def _check_ids(self, name: str, token_ids: tuple[int, ...]) -> None:
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= self.vocab_size:
            raise invalid(
                f"{name} holds {low if low < 0 else high}; token ids of this base model are "
                f"0 to {self.vocab_size - 1}"
            )
