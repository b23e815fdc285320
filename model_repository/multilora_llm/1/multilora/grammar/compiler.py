"""GrammarCompiler: JSON schemas and regular expressions → llguidance's matchers of base tokens.

A matcher lets JSON have one space between its parts, as most models write it, and no other white
space: a small model could write white space for ever.
"""

import json
import threading
from collections.abc import Callable
from typing import Any

from multilora.errors import invalid
from multilora_api.sampling import Grammar

_JSON_OPTIONS = {"whitespace_pattern": "[ ]?"}
# With llguidance's own limit (1,000,000) the first mask of a grammar may take 0.7 s, for which all
# other requests wait. 1,000 required properties or an enum of 5,000 texts stay below this limit.
_FIRST_MASK_FUEL = 60_000
_MOST_STATES = 50_000  # of 1 to 2 kB each, kept with the grammar
_MOST_CHARACTERS = {"json": 256 << 10, "regex": 64 << 10}


class GrammarCompiler:
    """Any thread with a stack of STACK_BYTES. A grammar must have passed the GrammarSandbox first.

    `tokenizer_json` gives the text of the base model's tokenizer.json, and is called when the first
    grammar needs the text.
    """

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
        self._lock = threading.Lock()  # guards _tokenizer

    def prepare(self) -> None:
        """RequestError (INVALID_ARG) when no grammar can be compiled for this base model."""
        self._own_tokenizer(_llguidance())

    def setup(self) -> dict[str, Any]:
        """The first line for the process of a GrammarSandbox; call `prepare` before."""
        assert self._tokenizer_json is not None
        return {
            "tokenizer": self._tokenizer_json(),
            "vocab_size": self._vocab_size,
            "eos_token_ids": self._eos_token_ids,
        }

    def compile(self, grammar: Grammar) -> Any:
        """An LLMatcher at the start of `grammar`; raises RequestError (INVALID_ARG)."""
        most = _MOST_CHARACTERS[grammar.kind]
        if len(grammar.text) > most:
            size = len(grammar.text)
            raise invalid(f"grammar has {size} characters, more than {most}; shorten it")
        llguidance = _llguidance()
        tokenizer = self._own_tokenizer(llguidance)
        limits = llguidance.LLParserLimits(
            initial_lexer_fuel=_FIRST_MASK_FUEL, max_lexer_states=_MOST_STATES
        )
        make, compiled = llguidance.LLMatcher, None
        try:
            if grammar.kind == "json":
                text = make.grammar_from_json_schema(grammar.text, overrides=_JSON_OPTIONS)
            else:
                text = make.grammar_from_regex(grammar.text)
            if grammar.after:
                text = _following(grammar.after, text)
            compiled = make(tokenizer, text, log_level=0, limits=limits)
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
        """A base model may pad its vocabulary: then it has more ids than its tokenizer. A tokenizer
        that has more ids does no harm, because the base model never samples those."""
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


def _following(after: str, text: str) -> str:
    """The grammar `text`, as the package writes one, behind the first `after`."""
    found = json.loads(text)
    found["grammars"][0]["name"] = "answer"
    plain = "".join(f"\\x{{{ord(char):x}}}" for char in after)
    start = f"start: free space @answer\nfree[lazy]: /(?s:.*){plain}/\nspace: /\\s{{0,4}}/"
    found["grammars"].insert(0, {"name": "start", "lark_grammar": start})
    return json.dumps(found)


def _llguidance() -> Any:
    """The package, imported with the first grammar: a server without grammars does not need it."""
    try:
        import llguidance
    except ImportError:
        raise invalid(
            "grammar needs the Python package llguidance, which this server lacks; install it "
            "there (pip install llguidance) or leave grammar out"
        ) from None
    return llguidance


def first_line(text: str) -> str:
    """The first line that is not blank, at most 300 characters of it."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]
