"""Grammars that would take a server's time or memory, or its life: one request pays for each."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from multilora.config import DEMO
from multilora.errors import ErrorCode, RequestError
from multilora.grammar_compiler import GrammarCompiler
from multilora.grammar_limits import check_grammar
from multilora.grammars import Grammars
from multilora.request import Grammar
from multilora_text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
PATHS = [str(ROOT / "client"), str(ROOT / "model_repository/multilora_llm/1")]
TOKENIZER = Tokenizer.from_folder(DEMO / "base")
EOS, VOCAB = 257, 272
TOO_LONG_FOR_ONE_MASK = "(a{1000}){1000}"
# As deep as its text may be: each level is one more call inside llguidance.
DEEP = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from concurrent.futures import Future
from multilora.config import DEMO
from multilora.grammar_compiler import GrammarCompiler
from multilora.grammar_threads import GrammarThreads
from multilora.request import Grammar
from multilora_text.tokenizer import Tokenizer
depth, level = int(sys.argv[2]), sys.argv[3]
names = {f"a{i}": json.loads(level.replace("NEXT", f"#/$defs/a{i + 1}")) for i in range(depth)}
schema = {"$ref": "#/$defs/a0", "$defs": {**names, f"a{depth}": {"type": "string"}}}
text = json.dumps(schema, separators=(",", ":"))
compiler = GrammarCompiler(Tokenizer.from_folder(DEMO / "base").to_json, 272, (257,))
done = Future()
threads = GrammarThreads(1)
threads.submit(lambda: done.set_result(compiler.compile(Grammar("json", text))))
mask = done.result(60).deep_copy().compute_bitmask()
threads.close()
print(len(text), any(mask))
"""


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


def integers(*factors: float) -> dict[str, Any]:
    """An object with an integer for each factor, in properties of awkward names."""
    names = ("default", "enum", "multipleOf", "x-y", "const")
    properties = {
        f"{names[i % 5]}{i // 5 or ''}": {"type": "integer", "multipleOf": factor}
        for i, factor in enumerate(factors)
    }
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    "grammar",
    [
        schema(integers(123456789)),
        schema(integers(*range(9001, 9401, 2))),
        schema({"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}),
        schema({"type": "number", "multipleOf": 3.14159265}),
    ],
)
def test_remainders_are_counted(grammar: Grammar) -> None:
    with pytest.raises(RequestError, match="multipleOf are too large") as caught:
        check_grammar(grammar)
    assert caught.value.code is ErrorCode.INVALID_ARG


def test_usual_numbers_are_free() -> None:
    usual = (0.01, 0.5, 1, 5, 7, 12, 15, 60, 90, 100, 1000, 1024, 3600, 1e6, 10**9)
    for factors in (usual, [9001] * 50):
        CountingCompiler().compile(schema(integers(*factors)))
    for factor in (0, -3, float("1e308"), True, "7", None, [7]):
        check_grammar(schema({"multipleOf": factor}))  # llguidance says what is wrong


@pytest.mark.parametrize(("kind", "most"), [("json", 256 << 10), ("regex", 64 << 10)])
def test_a_text_that_is_too_long(kind: Any, most: int) -> None:
    text = json.dumps("a" * (most - 2))
    check_grammar(Grammar(kind, text))
    with pytest.raises(RequestError, match=f"more than {most}; shorten it"):
        check_grammar(Grammar(kind, text + " "))


@pytest.mark.parametrize(
    ("depth", "level"),
    [(8000, '{"$ref":"NEXT"}'), (3500, '{"type":"object","properties":{"x":{"$ref":"NEXT"}}}')],
)
def test_a_deep_schema_does_not_end_the_process(depth: int, level: str) -> None:
    command = [sys.executable, "-c", DEEP, json.dumps(PATHS), str(depth), level]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    length, any_token = done.stdout.split()
    assert (200 << 10) < int(length) <= (256 << 10) and any_token == "True"


def test_what_is_too_large_for_one_mask_is_refused() -> None:
    with pytest.raises(RequestError, match="too big"):
        CountingCompiler().compile(Grammar("regex", "a?" * 20_000))


def test_a_grammar_that_gave_up_is_forgotten() -> None:
    """Its matchers share what they know: the next one would give up too."""
    compiler = CountingCompiler()
    grammars = Grammars(compiler, VOCAB)
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


def test_only_so_many_are_kept() -> None:
    compiler = CountingCompiler()
    grammars = Grammars(compiler, VOCAB)
    for number in [*range(33), 32, 0]:
        grammars.matcher(Grammar("regex", f"a{{{number + 1}}}"))
    assert compiler.compiled == 34
