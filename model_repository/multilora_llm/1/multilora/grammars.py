"""Grammars: the JSON schemas and regular expressions of requests, compiled for the base's tokens.

Compiling takes from milliseconds to a second, so `matcher` is for the threads that bring requests,
never for the engine thread. What was compiled is kept and copied for the next request.

JSON may have one space between its parts, as most models write it, and no other white space: with
more, a small model could write white space for ever.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from multilora.errors import invalid
from multilora.request import Grammar

_KEPT = 128  # compiled grammars
_JSON_OPTIONS = {"whitespace_pattern": "[ ]?"}
_EVERYTHING = 0xFF


class GrammarMatcher:
    """A TokenMatcher of llguidance's LLMatcher."""

    def __init__(self, matcher: Any, num_bytes: int) -> None:
        self.error: str | None = None
        self._matcher = matcher
        self._num_bytes = num_bytes

    def allowed(self) -> bytes:
        mask = b""
        try:
            if not self.error:
                mask = self._matcher.compute_bitmask()
            if self._matcher.is_error():
                self._fail()
        except Exception as error:  # of one request: no other may notice
            self.error = first_line(str(error)) or type(error).__name__
        if self.error:  # the sequence ends after this pass; until then its row needs some token
            return bytes([_EVERYTHING]) * self._num_bytes
        return mask[: self._num_bytes]

    def accept(self, token_id: int) -> None:
        if not self.error and not self._matcher.consume_token(token_id):
            self._fail()

    def _fail(self) -> None:
        self.error = first_line(self._matcher.get_error()) or "it says no reason"


class Grammars:
    """For any threads. `tokenizer_json` gives the text of the base's tokenizer.json; it is asked
    once, at the first grammar."""

    def __init__(
        self,
        tokenizer_json: Callable[[], str] | None,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_token_ids = [token for token in eos_token_ids if token < vocab_size]
        self._tokenizer: Any = None
        self._lock = threading.Lock()  # guards _tokenizer and _compiled
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()

    def matcher(self, grammar: Grammar) -> GrammarMatcher:
        """A matcher at the start of `grammar`; raises RequestError (INVALID_ARG)."""
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is not None:
                self._compiled.move_to_end(grammar)
        if compiled is None:
            compiled = self._compile(grammar)
            with self._lock:
                self._compiled[grammar] = compiled
                while len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
        return GrammarMatcher(compiled.deep_copy(), -(-self._vocab_size // 8))

    def _compile(self, grammar: Grammar) -> Any:
        llguidance = _llguidance()
        tokenizer = self._own_tokenizer(llguidance)
        make, compiled = llguidance.LLMatcher, None
        try:
            if grammar.kind == "json":
                text = make.grammar_from_json_schema(grammar.text, overrides=_JSON_OPTIONS)
            else:
                text = make.grammar_from_regex(grammar.text)
            compiled = make(tokenizer, text, log_level=0)
            problem = compiled.get_error() if compiled.is_error() else ""
        except ValueError as error:
            problem = str(error)
        if problem:
            what = "JSON schema" if grammar.kind == "json" else "regular expression"
            raise invalid(
                f"grammar: this {what} cannot be used ({first_line(problem)}); "
                "correct or simplify it"
            )
        return compiled

    def _own_tokenizer(self, llguidance: Any) -> Any:
        if self._tokenizer_json is None:
            raise invalid("grammar needs the base model's tokenizer.json, which its folder lacks")
        if not self._eos_token_ids:
            raise invalid(
                "grammar needs a base model whose config.json names an eos_token_id; leave it out"
            )
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._load(llguidance, self._tokenizer_json())
            return self._tokenizer

    def _load(self, llguidance: Any, text: str) -> Any:
        """With more ids than the tokenizer has, where the base pads its vocabulary; the other way
        round, the base cannot sample what its rows lack."""
        eos = self._eos_token_ids
        try:
            own = llguidance.LLTokenizer(text, eos_token=eos)
            if own.vocab_size >= self._vocab_size:
                return own
            return llguidance.LLTokenizer(text, n_vocab=self._vocab_size, eos_token=eos)
        except Exception as error:
            raise invalid(
                f"grammar: llguidance cannot read the base model's tokenizer.json "
                f"({first_line(str(error))}); send requests to this base model without a grammar"
            ) from None


def _llguidance() -> Any:
    """Imported late: whoever sends no grammar needs no such package."""
    try:
        import llguidance
    except ImportError:
        raise invalid(
            "grammar needs the Python package llguidance, which this server lacks; install it "
            "there (pip install llguidance) or leave grammar out"
        ) from None
    return llguidance


def first_line(text: str) -> str:
    """The first line that says anything, in one piece."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]
