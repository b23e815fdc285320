"""Fields of a request's body that nobody here knows: the answer names them and the log does once.
With `strict` they are refused instead."""

import difflib
import logging
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from urllib.parse import quote

Place = tuple[str | int, ...]  # names of fields and numbers of list items, from the body on

_LOG = logging.getLogger("multilora.gateway")
_MOST_NAMED = 16  # in one header
_MOST_LOGGED = 100  # by one process
_LONGEST = 100  # characters of a client's own words
_logged: set[str] = set()


class UnknownFields:
    """What the body of one request holds beyond what is known."""

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self._names: dict[str, None] = {}  # a set in the order of arrival

    def ignore(self, place: Place, known: Iterable[str]) -> None:
        """`known` are the names that are read in the same place."""
        if len(self._names) > _MOST_NAMED:
            return
        name = ".".join(part[:_LONGEST] for part in place if isinstance(part, str))
        self._names[name] = None
        if len(_logged) < _MOST_LOGGED and name not in _logged:
            _logged.add(name)
            _log(name, place, known)

    def header(self) -> bytes:
        """The value of the header x-ignored-fields, b"" without any."""
        names = [quote(name, safe=".") for name in self._names]
        return ", ".join([*names[:_MOST_NAMED], *(["..."] if names[_MOST_NAMED:] else [])]).encode()


_current: ContextVar[UnknownFields | None] = ContextVar("unknown_fields", default=None)


def begin(strict: bool) -> UnknownFields:
    """What this task, and those that it starts, will find in the body that they read."""
    fields = UnknownFields(strict)
    _current.set(fields)
    return fields


def current() -> UnknownFields:
    """Outside of a request, one that nobody reads."""
    return _current.get() or UnknownFields()


def _log(name: str, place: Place, known: Iterable[str]) -> None:
    close: Sequence[str] = difflib.get_close_matches(str(place[-1])[:_LONGEST], list(known), n=1)
    guess = f"; did you mean {close[0]}?" if close else ""
    _LOG.warning("the unknown field %s of a request is ignored%s", ascii(name), guess)
