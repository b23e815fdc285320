"""TokenMatcher: which tokens a sequence may go on with. Pure; grammars.py makes them."""

from typing import Protocol


class TokenMatcher(Protocol):
    """Stands behind the tokens of one sequence so far; engine thread only.

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
