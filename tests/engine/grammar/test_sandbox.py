"""Grammars that would take a server's time or memory, or its life: one request pays for each."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from multilora.config import DEMO
from multilora.errors import ErrorCode, RequestError
from multilora.grammar.cache import GrammarCache
from multilora.grammar.compiler import GrammarCompiler
from multilora.grammar.threads import GrammarThreads
from multilora_api.sampling import Grammar
from multilora_text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_folder(DEMO / "base")
EOS, VOCAB = 257, 272
TOO_LONG_FOR_ONE_MASK = "(a{1000}){1000}"


class CountingCompiler(GrammarCompiler):
    """Compiles, and counts how often."""

    def __init__(self) -> None:
        super().__init__(TOKENIZER.to_json, VOCAB, (EOS,))
        self.compiled = 0

    def compile(self, grammar: Grammar) -> Any:
        self.compiled += 1
        return super().compile(grammar)


def schema(value: Any) -> Grammar:
    return Grammar("json", json.dumps(value))


def chain(depth: int, level: str) -> Grammar:
    """As deep as its text may be: each level is one more call inside llguidance."""
    names = {f"a{i}": json.loads(level.replace("NEXT", f"#/$defs/a{i + 1}")) for i in range(depth)}
    value = {"$ref": "#/$defs/a0", "$defs": {**names, f"a{depth}": {"type": "string"}}}
    return Grammar("json", json.dumps(value, separators=(",", ":")))


@pytest.fixture
def compiler() -> CountingCompiler:
    return CountingCompiler()


@pytest.fixture
def grammars(compiler: CountingCompiler) -> Iterator[GrammarCache]:
    grammars = GrammarCache(compiler, VOCAB)
    yield grammars
    grammars.close()


@pytest.mark.parametrize(
    "value",
    [
        {"type": "integer", "multipleOf": 123456789},
        {"allOf": [{"type": "string", "pattern": f"a{{{i}}}.*b"} for i in range(1, 26)]},
    ],
    ids=["time", "time and memory"],
)
def test_what_takes_too_much_is_refused_and_remembered(grammars: GrammarCache, value: Any) -> None:
    errors: list[RequestError] = []
    for _ in range(2):
        with pytest.raises(RequestError, match="more time or memory to compile than") as caught:
            grammars.matcher(schema(value))
        assert caught.value.code is ErrorCode.INVALID_ARG
        errors.append(caught.value)
        assert grammars.matcher(Grammar("regex", "ab")).allowed()
        grammars.close()  # what is remembered needs no process
    assert errors[0] is not errors[1]


@pytest.mark.parametrize(
    "value",
    [
        {"type": "object", "required": [f"property_{i}" for i in range(1000)],
         "properties": {f"property_{i}": {"type": "string"} for i in range(1000)}},
        {"enum": [f"v{i}{i * i}" for i in range(5000)]},
    ],
    ids=["properties", "enum"],
)  # fmt: skip
def test_large_schemas_are_compiled(grammars: GrammarCache, value: Any) -> None:
    matcher = grammars.matcher(schema(value))
    assert any(matcher.allowed()) and not matcher.error


def test_usual_numbers_are_free(grammars: GrammarCache) -> None:
    usual = (0.01, 0.5, 1, 5, 7, 12, 15, 60, 90, 100, 1000, 1024, 3600, 1e6, 10**9)
    properties = {f"p{x}": {"type": "integer", "multipleOf": x} for x in usual}
    assert grammars.matcher(schema({"type": "object", "properties": properties})).allowed()


@pytest.mark.parametrize(("kind", "most"), [("json", 256 << 10), ("regex", 64 << 10)])
def test_a_text_that_is_too_long(kind: Any, most: int) -> None:
    with pytest.raises(RequestError, match=f"more than {most}; shorten it"):
        CountingCompiler().compile(Grammar(kind, '"' + "a" * most))


@pytest.mark.parametrize(
    ("depth", "level"),
    [(8000, '{"$ref":"NEXT"}'), (3500, '{"type":"object","properties":{"x":{"$ref":"NEXT"}}}')],
)
def test_a_deep_schema_does_not_end_the_process(
    grammars: GrammarCache, depth: int, level: str
) -> None:
    """On the threads that are made for it."""
    grammar = chain(depth, level)
    assert (200 << 10) < len(grammar.text) <= (256 << 10)
    threads, found = GrammarThreads(1), list[bytes]()
    threads.submit(lambda: found.append(grammars.matcher(grammar).allowed()))
    threads.close()
    assert found and any(found[0])


def test_the_process_that_dies_is_replaced(grammars: GrammarCache) -> None:
    grammars.matcher(Grammar("regex", "a"))
    (process,) = grammars._sandbox._pool._idle
    process.end()
    assert grammars.matcher(Grammar("regex", "b")).allowed()
    (other,) = grammars._sandbox._pool._idle
    assert other is not process and grammars._sandbox._pool._all == {other}


def test_closing_ends_what_is_being_tried(grammars: GrammarCache) -> None:
    grammars.matcher(Grammar("regex", "a"))
    (process,) = grammars._sandbox._pool._idle
    errors: list[RequestError] = []

    def slow() -> None:
        with pytest.raises(RequestError) as caught:
            grammars.matcher(schema({"type": "integer", "multipleOf": 123456789}))
        errors.append(caught.value)

    thread = threading.Thread(target=slow)
    thread.start()
    while grammars._sandbox._pool._idle:
        time.sleep(0.01)
    grammars.close()
    thread.join(20)
    assert [error.code for error in errors] == [ErrorCode.UNAVAILABLE]
    assert process._process.poll() is not None
    with pytest.raises(RequestError, match="shutting down"):
        grammars.matcher(Grammar("regex", "b"))


def test_what_is_too_large_for_one_mask_is_refused() -> None:
    with pytest.raises(RequestError, match="too big"):
        CountingCompiler().compile(Grammar("regex", "a?" * 20_000))


def test_a_grammar_that_gave_up_is_forgotten(
    grammars: GrammarCache, compiler: CountingCompiler
) -> None:
    """Its matchers share what they know: the next one would give up too."""
    sound, bad = Grammar("regex", "ab"), Grammar("regex", TOO_LONG_FOR_ONE_MASK)
    for number in (1, 2):
        grammars.matcher(sound)
        matcher = grammars.matcher(bad)
        while not matcher.error:
            matcher.allowed()
            matcher.accept(ord("a"))
        assert compiler.compiled == 1 + number
    wrong = grammars.matcher(sound)
    wrong.accept(ord("z"))
    assert wrong.error and len(grammars.matcher(sound).allowed()) == VOCAB // 8
    assert compiler.compiled == 4


def test_only_so_many_are_kept(grammars: GrammarCache, compiler: CountingCompiler) -> None:
    for number in [*range(33), 32, 0]:
        grammars.matcher(Grammar("regex", f"a{{{number + 1}}}"))
    assert compiler.compiled == 34
