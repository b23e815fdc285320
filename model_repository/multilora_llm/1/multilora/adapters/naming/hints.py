"""Names that a mistyped name resembles, found in time that does not grow with their number."""

import bisect
import difflib
from collections.abc import Sequence

_NEIGHBOURS = 8  # on each side, in alphabetical order
_LONGEST = 64
_MOST = 2


def resembling(name: str, *sorted_names: Sequence[str]) -> list[str]:
    """At most two of the names, best first; those that begin alike are compared."""
    if len(name) > _LONGEST:
        return []
    candidates: list[str] = []
    for names in sorted_names:
        place = bisect.bisect(names, name)
        near = names[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS]
        candidates += [other for other in near if len(other) <= _LONGEST]
    return difflib.get_close_matches(name, dict.fromkeys(candidates), n=_MOST, cutoff=0.7)
