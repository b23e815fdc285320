"""API keys as operators write them, one a line: KEY, or KEY:pattern,pattern for some adapters.

Law: an entry that may be a torn-off part of another entry is refused, so that a pattern never
becomes a key. Only the standard library is imported: the launcher reads keys, too.
"""

import re
from collections.abc import Sequence

_FORM = "write KEY, or KEY:sql*,org/* to limit it to adapters"


def read_keys(flags: Sequence[str] | None, variable: str) -> tuple[str, ...]:
    """The keys of the --api-key flags, else of API_KEY, without blanks. ValueError says what to
    write, and never shows a key."""
    if flags is None:
        return _checked(_lines(variable))
    entries: list[str] = []
    for text in flags:
        lines = _lines(text)
        if not lines:
            raise ValueError(
                "--api-key is empty; give the key, or leave the flag out to let everybody generate"
            )
        entries += lines
    return _checked(entries)


def key_and_patterns(entry: str) -> tuple[str, tuple[str, ...] | None]:
    """A key and its patterns: None without a colon, for any adapter; empty when nothing follows the
    colon, for the base model alone."""
    key, colon, patterns = entry.partition(":")
    return key, tuple(filter(None, patterns.split(","))) if colon else None


def _lines(text: str) -> list[str]:
    lines = (re.sub(r"\s*([,:])\s*", r"\1", line.strip()) for line in text.splitlines())
    return [line for line in lines if line]


def _checked(entries: Sequence[str]) -> tuple[str, ...]:
    # A single key may be any word, base64 too; beside others, org/name is more likely a pattern.
    strange = "*,/" if len(entries) > 1 else "*,"
    for number, entry in enumerate(entries, 1):
        key, _ = key_and_patterns(entry)
        problem = ""
        if re.search(r"\s", entry):
            problem = "holds white space, but each has a line or an --api-key of its own"
        elif not key:
            problem = "is empty before its colon"
        elif found := next((char for char in key if char in strange), ""):
            problem = f"holds {found!r}, as if it were patterns without their key"
        elif entry.endswith(","):
            problem = "ends in a comma"
        if problem:
            raise ValueError(f"API key {number} {problem}; {_FORM}")
    return tuple(entries)
