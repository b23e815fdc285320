"""GrammarCache: the grammars of requests, compiled once and copied for each request.

Compiling takes from milliseconds to a second, so it belongs on GrammarThreads, never on the engine
thread. A grammar that the sandbox refuses is remembered for a while. A grammar whose matcher gave
up is forgotten: all matchers of a compiled grammar share its state, so the next one would give up
too.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from multilora.errors import ErrorCode, RequestError, invalid
from multilora.grammar.compiler import GrammarCompiler, first_line
from multilora.grammar.sandbox import GrammarSandbox
from multilora_api.sampling import Grammar

_KEPT = 32  # compiled grammars: most take a few MB, each at most some 100
_REFUSED = 256  # remembered refusals: each may have taken the sandbox seconds
_EVERYTHING = 0xFF
_T = TypeVar("_T")


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
        except Exception as error:  # it ends one request, and no other
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


class GrammarCache:
    """Any thread."""

    def __init__(self, compiler: GrammarCompiler, vocab_size: int) -> None:
        self._compiler = compiler
        self._vocab_size = vocab_size
        self._sandbox = GrammarSandbox(compiler.setup)
        self._lock = threading.Lock()  # guards what follows
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()
        self._refused: OrderedDict[Grammar, str] = OrderedDict()

    def matcher(self, grammar: Grammar) -> GrammarMatcher:
        """A matcher at the start of `grammar`; raises RequestError (INVALID_ARG)."""
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is not None:
                self._compiled.move_to_end(grammar)
            elif refusal := self._refused.get(grammar):
                raise invalid(refusal)  # a new error: an old one keeps its traceback alive
        if compiled is None:
            compiled = self._compile(grammar)
        return GrammarMatcher(
            compiled.deep_copy(),
            -(-self._vocab_size // 8),
            lambda: self._forget(grammar, compiled),
        )

    def close(self) -> None:
        """End the sandbox; nothing more is compiled."""
        self._sandbox.close()

    def _compile(self, grammar: Grammar) -> Any:
        self._compiler.prepare()
        try:
            self._sandbox.check(grammar)
        except RequestError as error:
            if error.code is ErrorCode.INVALID_ARG:
                with self._lock:
                    _keep(self._refused, grammar, error.message, _REFUSED)
            raise
        compiled = self._compiler.compile(grammar)
        with self._lock:
            _keep(self._compiled, grammar, compiled, _KEPT)
        return compiled

    def _forget(self, grammar: Grammar, compiled: Any) -> None:
        with self._lock:
            if self._compiled.get(grammar) is compiled:
                del self._compiled[grammar]


def _keep(kept: OrderedDict[Grammar, _T], grammar: Grammar, value: _T, most: int) -> None:
    """Keep the `most` newest values."""
    kept[grammar] = value
    while len(kept) > most:
        kept.popitem(last=False)
