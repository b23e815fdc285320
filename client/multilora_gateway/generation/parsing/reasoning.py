"""What a model thinks, between tags before its answer, and the answer itself.

Laws: the parts put together do not depend on how the text is split. Tags come only once, before the
answer: later ones are text. White space around the thoughts belongs to the tags.
"""

from dataclasses import dataclass
from typing import Literal

from multilora_gateway.generation.parsing.parts import Reasoning, before

# What a text begins with: no thoughts at all; thoughts if the model opens them; thoughts that the
# prompt has opened, though the model may write the tag again; the rest of thoughts.
Thoughts = Literal["none", "possible", "begun", "inside"]


@dataclass(frozen=True)
class ReasoningTags:
    """What stands around the thoughts."""

    open: str
    close: str


class ReasoningParser:
    """Splits the text of one answer, which begins with `thoughts`."""

    def __init__(
        self, tags: ReasoningTags, thoughts: Literal["possible", "begun", "inside"]
    ) -> None:
        self._tags = tags
        self._begun = thoughts != "possible"
        self._state: Literal["before", "inside", "behind", "answer"]
        self._state = "inside" if thoughts == "inside" else "before"
        self._held = ""
        # Whether there were thoughts, and not only white space.
        self._thought = thoughts == "inside"
        self._space = ""  # what may turn out to be the white space that ends them

    def push(self, text: str) -> list[str | Reasoning]:
        """The parts that this text makes certain."""
        self._held += text
        parts: list[str | Reasoning] = []
        if self._state == "before":
            self._open()
        if self._state == "inside":
            parts += self._think()
        if self._state == "behind":
            self._held = self._held.lstrip()
            if self._held:
                self._state = "answer"
        if self._state == "answer":
            parts += [self._held] if self._held else []
            self._held = ""
        return parts

    def finish(self) -> list[str | Reasoning]:
        """The rest, at the end of the answer."""
        rest, self._held = self._held, ""
        if self._state == "inside" or (self._state == "before" and self._begun):
            return [*self._thoughts(rest)]
        return [rest] if rest and self._state == "before" else []

    def _open(self) -> None:
        begin = self._held.lstrip()
        if begin.startswith(self._tags.open):
            self._state = "inside"
            self._held = begin.removeprefix(self._tags.open)
        elif not self._tags.open.startswith(begin):
            self._state = "inside" if self._begun else "answer"

    def _think(self) -> list[Reasoning]:
        certain, closed = before(self._held, self._tags.close)
        thoughts, self._held = self._thoughts(self._held[:certain]), self._held[certain:]
        if closed:
            self._held = self._held[len(self._tags.close) :]
            self._state = "behind"
        return thoughts

    def _thoughts(self, text: str) -> list[Reasoning]:
        """Those of `text`; white space that may end them is kept back."""
        text = self._space + text if self._thought else text.lstrip()
        kept = text.rstrip()
        self._space = text[len(kept) :]
        self._thought = self._thought or bool(kept)
        return [Reasoning(kept)] if kept else []
