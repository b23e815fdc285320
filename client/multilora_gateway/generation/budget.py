"""How many tokens may follow a prompt."""

from dataclasses import dataclass

from multilora_gateway.backend.served_model import ServedModel


@dataclass(frozen=True)
class TokenBudget:
    """What `base` leaves to the answer after a prompt of `prompt_tokens`.

    Only the arithmetic is here: each API refuses what does not fit in words of its own.
    """

    prompt_tokens: int
    base: ServedModel

    @property
    def left(self) -> int:
        """Tokens between the prompt and the longest sequence; below 1 nothing can be generated."""
        return self.base.max_total_tokens - self.prompt_tokens

    @property
    def prompt_is_too_long(self) -> bool:
        return self.prompt_tokens > self.base.max_input_tokens

    def granted(self, asked: int | None, default: int | None = None) -> int:
        """`asked`, else as much of `default` as is left, else all that is left."""
        if asked is not None:
            return asked
        return self.left if default is None else min(default, self.left)
