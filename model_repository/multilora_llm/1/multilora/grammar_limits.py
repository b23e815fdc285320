"""What a grammar may hold, checked before llguidance sees it: nothing can stop it half way.

A multipleOf becomes an automaton with a state for each remainder, but for factors of 2 and 5,
which the last digits tell. Different ones may be multiplied with each other; equal ones are one.
"""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from multilora.errors import invalid
from multilora.request import Grammar

_MOST_CHARACTERS = {"json": 256 << 10, "regex": 64 << 10}
_MOST_REMAINDERS = 100_000  # compiled in less than a second, into less than 100 MB


def check_grammar(grammar: Grammar) -> None:
    """Raises RequestError (INVALID_ARG)."""
    most = _MOST_CHARACTERS[grammar.kind]
    if len(grammar.text) > most:
        raise invalid(f"grammar has {len(grammar.text)} characters, more than {most}; shorten it")
    if grammar.kind == "json":
        _check_remainders(json.loads(grammar.text))


def _check_remainders(schema: Any) -> None:
    states = 1
    for number in {_remainders(factor) for factor in _factors(schema)}:
        states = min(states * number, _MOST_REMAINDERS + 1)
    if states > _MOST_REMAINDERS:
        raise invalid(
            "grammar: the values of multipleOf are too large, or too many; use rounder ones such "
            "as 100 or 0.01, or leave multipleOf out and check the answer"
        )


def _factors(schema: Any) -> Iterator[int | float]:
    """Every multipleOf, without recursion: a schema may be deep."""
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        elif isinstance(part, dict):
            factor = part.get("multipleOf")
            if isinstance(factor, int | float) and not isinstance(factor, bool):
                yield factor
            left += part.values()


def _remainders(factor: int | float) -> int:
    """States of its automaton."""
    if not 0 < factor < 1e300:  # refused anyway
        return 1
    number = int("".join(map(str, Decimal(str(factor)).as_tuple().digits)))
    for prime in (2, 5):
        while number % prime == 0:
            number //= prime
    return number
