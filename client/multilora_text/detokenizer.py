"""Token ids → text as it grows, cut at stop strings.

Law: the deltas of `push` and `flush` put together are the decoded text up to the stop string that
is complete first, the longest of several that end there, however the ids were split; `include_stop`
leaves that stop string in. A delta never ends in half a character, and text that may begin a stop
string is held back until it is decided.

A window of the last ids is decoded without and with the new id; the difference is new text. U+FFFD
at the end of that text may be the beginning of a character (byte-fallback decoders write it for
every byte of an unfinished run), so U+FFFD is held back. The window starts one delta earlier than
needed because decoders treat the first token of a text specially (a leading space).
"""

from multilora_text.tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """The text of one sequence. `stopped` is True once a stop string was found."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: tuple[str, ...] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self.stopped = False
        self._include_stop = include_stop
        self._tokenizer = tokenizer
        self._stop = stop
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []
        self._settled = 0  # how many ids of the window have all their text returned
        self._emitted = 0  # how many characters of the decoded window were returned
        self._held = ""  # decoded text that may begin a stop string

    def push(self, token_id: int) -> str:
        """The text that became certain with this token, maybe none."""
        if self.stopped:
            return ""
        self._window.append(token_id)
        text = self._text()
        certain = len(text.rstrip(_REPLACEMENT))
        delta = self._emit(text, certain)
        if delta and certain == len(text):
            del self._window[: self._settled]
            self._settled = len(self._window)
            self._emitted = len(self._text())
        return self._cut(delta)

    def flush(self) -> str:
        """The text still held back when the sequence ends; half a character becomes U+FFFD."""
        if self.stopped:
            return ""
        text = self._text()
        rest = self._cut(self._emit(text, len(text))) + self._held
        self._held = ""
        return rest

    def _text(self) -> str:
        return self._tokenizer.decode(self._window, self._skip_special_tokens)

    def _emit(self, text: str, end: int) -> str:
        delta = text[self._emitted : end]
        self._emitted = max(self._emitted, end)
        return delta

    def _cut(self, delta: str) -> str:
        if not self._stop:
            return delta
        text = self._held + delta
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            end, start = min(found)
            return text[: end if self._include_stop else start]
        held = max(overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
