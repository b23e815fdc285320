"""The table of sampling parameters: what it says is what SamplingParams takes."""

import dataclasses
import math
import re
import subprocess
import sys
from typing import Any

import pytest

from multilora_api.sampling import PARAMETERS, Grammar, ParameterError, SamplingParams

RANGED = [parameter for parameter in PARAMETERS.values() if parameter.range]


def test_the_defaults_are_accepted_and_stand_in_the_table() -> None:
    fields = dataclasses.asdict(SamplingParams())
    assert fields == {name: parameter.default for name, parameter in PARAMETERS.items()}


@pytest.mark.parametrize("parameter", RANGED, ids=lambda parameter: parameter.name)
def test_a_range_is_what_the_constructor_takes(parameter: Any) -> None:
    allowed = parameter.range
    least = math.nextafter(allowed.low, math.inf) if allowed.excludes_low else allowed.low
    good = [value for value in (least, allowed.high) if math.isfinite(value)]
    step = 1 if parameter.kind == "integer" else 1e-6
    bad = [allowed.low if allowed.excludes_low else allowed.low - step, allowed.high + step]
    for value in good:
        SamplingParams(**{"max_tokens": 2**31 - 1, parameter.name: value})
    for value in (value for value in [*bad, math.nan] if not math.isinf(value)):
        with pytest.raises(ParameterError, match=f"^{parameter.name} must be .*; got "):
            SamplingParams(**{parameter.name: value})


def test_min_tokens_ends_at_max_tokens() -> None:
    SamplingParams(max_tokens=3, min_tokens=3)
    with pytest.raises(ParameterError, match="min_tokens must be between 0 and max_tokens; got 4"):
        SamplingParams(max_tokens=3, min_tokens=4)


@pytest.mark.parametrize("bias", [-100.1, 100.1, math.nan, math.inf])
def test_a_bias_is_bounded(bias: float) -> None:
    with pytest.raises(ParameterError, match="logit_bias must map token ids to numbers"):
        SamplingParams(logit_bias=((1, bias),))


def test_a_tensor_has_a_type_and_a_type_has_a_tensor() -> None:
    assert all(bool(p.tensor) == bool(p.datatype) for p in PARAMETERS.values())
    assert PARAMETERS["stop"].tensor == "stop_words"


def test_the_package_needs_the_standard_library_alone() -> None:
    code = (
        "import sys; before = set(sys.modules);"
        "import multilora_api.sampling, multilora_api.tensors, multilora_api.admin;"
        "import multilora_api.adapter_names;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["multilora_api"]


@pytest.mark.parametrize("name", ["seed", "min_tokens", "logprobs"])
def test_a_whole_number_may_be_larger_than_any_float(name: str) -> None:
    with pytest.raises(ParameterError, match=f"{name} must be"):
        SamplingParams(**{name: 10**400})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("parameter", RANGED, ids=lambda parameter: parameter.name)
def test_another_number_of_a_range(parameter: Any) -> None:
    value = 1 if parameter.default is None else parameter.default
    other = parameter.range.other_than(value)
    assert other in parameter.range and other != value


@pytest.mark.parametrize("words", [("",), ("x" * 257,), ("x",) * 129], ids=len)
def test_bad_words_are_few_and_short(words: tuple[str, ...]) -> None:
    with pytest.raises(ParameterError, match="bad_words must be at most 128 strings of 1 to 256"):
        SamplingParams(bad_words=words)


def test_a_grammar_and_allowed_tokens_may_leave_nothing() -> None:
    with pytest.raises(ParameterError, match="send one of them"):
        SamplingParams(allowed_token_ids=(1,), grammar=Grammar("regex", "a"))


def test_choices_are_taken_literally() -> None:
    texts = ["a.b", "(c|d)*", "[^]\\", "é"]
    pattern = re.compile(Grammar.of_choices(texts).text)
    assert all(pattern.fullmatch(text) for text in texts)
    assert not pattern.fullmatch("axb") and not pattern.fullmatch("c")
