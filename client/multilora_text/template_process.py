"""The program that compiles and renders chat templates, in a process of its own: see worker.serve.

A question is [source, names]: the source of a template, and the names that it may know. The answer
has the `seconds` of processor time, and one of `text`, what the template makes; `refused`, why it
has raised an error; `broken`, why the source does not compile; `longer`, the number of characters
that the text may have. Nothing but jinja2 and the standard library is imported here, so that a
process starts fast.
"""

import hashlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from multilora_sandbox.worker import serve

MOST_SECONDS = 2.0  # of a core, for one question
MOST_BYTES = 512 << 20  # of address space, beside the program's own
_MORE_TEXT = 1 << 20  # characters that a text may have beside twice those of its question
_MOST_REASON = 1000  # characters
_DEVELOPER = ("'developer'", '"developer"')  # in the source of a template that knows the role
# In the source of a template, Mistral's, that refuses ids of calls of other lengths.
_NINE = re.compile(r"length\s*(?:!=|<)\s*9\b")
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_KEPT_SOURCES = 4 << 20  # characters of compiled templates; thousands of adapters share a few


class TemplateCache:
    """Templates by source, the least recently used first."""

    def __init__(self) -> None:
        self._environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
        )
        self._environment.filters["tojson"] = _to_json
        self._environment.tests["none"] = lambda value: value is None or value is _NO_TEXT
        self._environment.tests["string"] = lambda value: (
            isinstance(value, str) and value is not _NO_TEXT
        )
        self._environment.globals["raise_exception"] = _raise_exception
        self._environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._compiled: OrderedDict[str, jinja2.Template] = OrderedDict()
        self._characters = 0

    def compiled(self, source: str) -> jinja2.Template:
        if (found := self._compiled.get(source)) is not None:
            self._compiled.move_to_end(source)
            return found
        template = self._environment.from_string(source)
        self._compiled[source] = template
        self._characters += len(source)
        while self._characters > _KEPT_SOURCES:
            oldest, _ = self._compiled.popitem(last=False)
            self._characters -= len(oldest)
        return template


class _NoText(str):
    """The content of a message that has null there: none to a template that asks, and the empty
    text to the many that put messages together without asking."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other is None or other == ""

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash("")


_NO_TEXT = _NoText()


class _Arguments(dict[str, Any]):
    """The arguments of a call: an object to a template that asks, and the JSON text of one to those
    that print them, or put them together with texts, as clients send them."""

    def __str__(self) -> str:
        return _to_json(self)

    def __add__(self, other: str) -> str:
        return str(self) + other

    def __radd__(self, other: str) -> str:
        return other + str(self)


class _GenerationTag(Extension):
    """Ignores the tags `{% generation %}…{% endgeneration %}`, which mark training targets."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def main() -> None:
    serve(_prepare, MOST_SECONDS, MOST_BYTES)


def _prepare(_: Any) -> Callable[[bytes], dict[str, Any]]:
    templates = TemplateCache()

    def answer(question: bytes) -> dict[str, Any]:
        begin = time.process_time()
        kind = "refused"
        try:
            source, names = json.loads(question)
            for message in names["messages"]:
                _adapt(message, source)
            kind = "broken"
            template = templates.compiled(source)
            kind = "refused"
            text = template.render(names)
            text.encode()  # nobody can tokenise half a surrogate pair
            kind = "text"
        except MemoryError:
            raise
        except Exception as error:  # a template is a program, also at compile time: anything
            text = str(error)[:_MOST_REASON] or type(error).__name__
        most = _MORE_TEXT + 2 * len(question)
        if len(text) > most:
            kind, text = "longer", most
        return {kind: text, "seconds": time.process_time() - begin}

    return answer


def _adapt(message: dict[str, Any], source: str) -> None:
    """Changes a message so that a template, given its source, can show it."""
    if message.get("content", "") is None:
        message["content"] = _NO_TEXT
    if message.get("role") == "developer" and not any(name in source for name in _DEVELOPER):
        message["role"] = "system"  # the older name
    calls = message.get("tool_calls", ())
    for call in calls:
        call["function"]["arguments"] = _Arguments(call["function"]["arguments"])
    if _NINE.search(source):
        _shorten(message, "tool_call_id")
        for call in calls:
            _shorten(call, "id")


def _shorten(holder: dict[str, Any], name: str) -> None:
    """Makes an id that another server has given fit: a call and its result have the same again."""
    given = holder.get(name)
    if isinstance(given, str) and not _SHORT_ID.fullmatch(given):
        holder[name] = hashlib.sha256(given.encode()).hexdigest()[:9]


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: object, **options: Any) -> str:
    """JSON in which HTML characters stay as they are: jinja2's own tojson escapes them."""
    return json.dumps(_written(value), **{"ensure_ascii": False, **options})


def _written(value: Any) -> Any:
    """`value` as it came from the client: a message, or several, may have no text."""
    if value is _NO_TEXT:
        return None
    if isinstance(value, list):
        return [_written(item) for item in value]
    if isinstance(value, dict) and value.get("content") is _NO_TEXT:
        return {**value, "content": None}
    return value


if __name__ == "__main__":
    main()
