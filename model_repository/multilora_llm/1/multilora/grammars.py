"""Grammars: what requests are bound by, compiled once and copied for each of them.

Compiling takes from milliseconds to a second, so it is for GrammarThreads, never for the engine
thread. A grammar whose matcher gave up is forgotten: all its matchers share what it knows, and the
next one would give up too.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from multilora.grammar_compiler import GrammarCompiler, first_line
from multilora.request import Grammar

_KEPT = 32  # compiled grammars: most take a few MB, each at most some 100
_EVERYTHING = 0xFF


class GrammarMatcher:
    """A TokenMatcher of llguidance's LLMatcher; `failed` is called when it gives up."""

    def __init__(self, matcher: Any, num_bytes: int, failed: Callable[[], None]) -> None:
        self.error: str | None = None
        self._matcher = matcher
        self._num_bytes = num_bytes
        self._failed = failed

    def allowed(self) -> bytes:
        mask = b""
        try:
            if not self.error:
                mask = self._matcher.compute_bitmask()
                if self._matcher.is_error():
                    self._fail(self._matcher.get_error())
        except Exception as error:  # of one request: no other may notice
            self._fail(str(error) or type(error).__name__)
        if self.error:  # the sequence ends after this pass; until then its row needs some token
            return bytes([_EVERYTHING]) * self._num_bytes
        return mask[: self._num_bytes]

    def accept(self, token_id: int) -> None:
        if not self.error and not self._matcher.consume_token(token_id):
            self._fail(self._matcher.get_error())

    def _fail(self, reason: str) -> None:
        self.error = first_line(reason) or "it says no reason"
        self._failed()


class Grammars:
    """For any threads."""

    def __init__(self, compiler: GrammarCompiler, vocab_size: int) -> None:
        self._compiler = compiler
        self._vocab_size = vocab_size
        self._lock = threading.Lock()  # guards _compiled
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()

    def matcher(self, grammar: Grammar) -> GrammarMatcher:
        """A matcher at the start of `grammar`; raises RequestError (INVALID_ARG)."""
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is not None:
                self._compiled.move_to_end(grammar)
        if compiled is None:
            compiled = self._compiler.compile(grammar)
            with self._lock:
                self._compiled[grammar] = compiled
                while len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
        return GrammarMatcher(
            compiled.deep_copy(),
            -(-self._vocab_size // 8),
            lambda: self._forget(grammar, compiled),
        )

    def _forget(self, grammar: Grammar, compiled: Any) -> None:
        with self._lock:
            if self._compiled.get(grammar) is compiled:
                del self._compiled[grammar]
