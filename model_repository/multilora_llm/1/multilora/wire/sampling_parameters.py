"""The names a client may use for sampling, from JSON or from typed tensors, → SamplingParams.

Names follow the Triton vLLM backend and vLLM's SamplingParams. JSON values may be strings ("0.5",
"true"). A name nobody knows is an error, never ignored: it would change the answer silently.
"""

import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any

from multilora.errors import invalid
from multilora.json_fields import json_object
from multilora_api.sampling import PARAMETERS, Grammar, Kind, ParameterError, SamplingParams

_KINDS = ("json", "json_schema", "json_object", "regex")
_SHAPE = 'send for example {"type": "json", "value": {"type": "object", "properties": {…}}}'
_CONSTRAINTS = ("json", "regex", "choice", "json_object")
_STRUCTURED = 'send for example {"choice": ["yes", "no"]}'
_LONGEST_AFTER = 64
_TRUE = ("true", "1")
_FALSE = ("false", "0")


def parse_sampling_parameters(text: str) -> dict[str, Any]:
    """Read the `sampling_parameters` JSON object; raises RequestError (INVALID_ARG)."""
    remedy = 'send for example {"max_tokens": 64}'
    return json_object(text or "{}", "sampling_parameters", remedy)


def check_names(values: Mapping[str, Any], where: str, many_answers: bool = False) -> None:
    """Raise RequestError (INVALID_ARG) for a name that is not known or not supported.

    `many_answers`: `n` may be more than 1.
    """
    given = {name: value for name, value in values.items() if not (many_answers and name == "n")}
    _check_neutral(given, _NEUTRAL, where)
    for name in values:
        if name not in READERS and name not in ADAPTER_NAMES and name not in _NEUTRAL:
            close = difflib.get_close_matches(name, [*READERS, *ADAPTER_NAMES], n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(READERS)}"
            raise invalid(f"{where}: unknown name {name!r}; {hint}")


def _check_neutral(
    values: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], where: str
) -> None:
    """Raise RequestError (INVALID_ARG) for a value that asks for something."""
    for name, value in values.items():
        allowed = neutral.get(name, (value,))
        if value not in allowed and str(value).lower() not in allowed:
            raise invalid(f"{where}: {name} {value!r} is not supported; leave {name} out")


def adapter_name(values: Mapping[str, Any]) -> str:
    """The adapter a JSON object selects, "" for none."""
    for name in ADAPTER_NAMES:
        value = values.get(name)
        if value is not None and not isinstance(value, str):
            raise invalid(f"{name} must be a string; got {value!r}")
        if value:
            return value
    return ""


def sampling_params(values: Mapping[str, Any]) -> SamplingParams:
    """Build from names and values (None is absent); raises RequestError (INVALID_ARG)."""
    fields: dict[str, Any] = {}
    for name, reader in READERS.items():
        if (value := values.get(name)) is None or (read := reader(name, value)) is None:
            continue
        field = _FIELDS.get(name, name)
        if field in fields:
            raise invalid(f"{name} says what {field} says already; send one of them")
        fields[field] = read
    if fields.get("top_k") == -1:  # vLLM's way of saying off
        fields["top_k"] = 0
    try:
        return SamplingParams(**fields)
    except ParameterError as error:
        raise invalid(str(error)) from None


def read_count(name: str, value: Any) -> int:
    """A number of answers; None is 1. Raises RequestError (INVALID_ARG)."""
    count = 1 if value is None else _read_int(name, value)
    if count < 1:
        raise invalid(f"{name} must be at least 1; got {count}")
    return count


def _read_int(name: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, str):
            return int(value)
    except ValueError:
        pass
    raise invalid(f"{name} must be a whole number; got {value!r}")


def _read_float(name: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise invalid(f"{name} must be a number; got {value!r}") from None


def _read_bool(name: str, value: Any) -> bool:
    text = str(value).lower()
    if text not in _TRUE + _FALSE:
        raise invalid(f"{name} must be true or false; got {value!r}")
    return text in _TRUE


def _read_strings(name: str, value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(item, str) for item in strings):
        raise invalid(f"{name} must be a string or a list of strings; got {value!r}")
    return tuple(strings)


def _read_ids(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise invalid(f"{name} must be a list of token ids such as [2]; got {value!r}")
    return tuple(_read_int(f"{name}: a token id", item) for item in value)


def _read_bias(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict):
        raise invalid(f'{name} must be an object such as {{"42": -100}}; got {value!r}')
    bias = {_read_int(f"{name}: a token id", key): _read_float(name, value[key]) for key in value}
    return tuple(bias.items())


def _read_grammar(name: str, value: Any) -> Grammar:
    """As TGI's clients write it, an object or its JSON text:

    {"type": "json", "value": schema}           schema: an object, or its JSON text
    {"type": "json_schema", "value": {"name": …, "schema": schema}}     or the schema itself
    {"type": "json_object"}                     any JSON object
    {"type": "regex", "value": expression}      the whole answer matches it

    Each may have `after`, a text up to which the answer is free, such as "</think>".
    """
    given = json_object(value, name, _SHAPE)
    after = given.pop("after", "")
    if not isinstance(after, str) or len(after) > _LONGEST_AFTER:
        raise invalid(f"{name}: after must be a string of up to {_LONGEST_AFTER} characters")
    kind = given.get("type")
    if kind not in _KINDS:
        raise invalid(f"{name}: type must be one of {', '.join(_KINDS)}; got {kind!r}")
    unknown = given.keys() - {"type", "value"}
    if unknown:
        raise invalid(f"{name}: unknown name {sorted(unknown)[0]!r}; known are type, value, after")
    if kind == "json_object":
        return Grammar("json", '{"type": "object"}', after)
    inner = given.get("value")
    if inner is None:
        raise invalid(f"{name}: value is missing; {_SHAPE}")
    if kind == "regex":
        if not isinstance(inner, str) or not inner:
            raise invalid(f"{name}: value must be a regular expression as a string; got {inner!r}")
        return Grammar("regex", inner, after)
    schema = json_object(inner, f"{name}: value", _SHAPE)
    if kind == "json_schema":
        schema = _unwrapped(name, schema)
    return Grammar("json", json.dumps(schema, ensure_ascii=False), after)


def _read_structured(name: str, value: Any) -> Grammar | None:
    """As vLLM's clients write it, an object or its JSON text, with one of

    {"json": schema}            an object, or its JSON text
    {"regex": expression}       the whole answer matches it
    {"choice": [text, …]}       the answer is one of them
    {"json_object": true}       any JSON object
    """
    given = json_object(value, name, _STRUCTURED)
    _check_neutral(given, _NEUTRAL_STRUCTURED, name)
    if unknown := sorted(given.keys() - _NEUTRAL_STRUCTURED.keys() - {*_CONSTRAINTS}):
        known = ", ".join(_CONSTRAINTS)
        raise invalid(f"{name}: unknown name {unknown[0]!r}; known are {known}")
    found = [key for key in _CONSTRAINTS if given.get(key) not in (None, False)]
    if len(found) > 1:
        raise invalid(f"{name}: an answer has one constraint; send {' or '.join(found)} alone")
    if not found:
        return None
    kind, constraint = found[0], given[found[0]]
    if kind == "choice":
        texts = _read_strings(f"{name}: choice", constraint)
        if not any(texts):
            raise invalid(f"{name}: choice holds no text; send at least one")
        return Grammar.of_choices(texts)
    return _read_grammar(name, {"type": kind, "value": constraint})


def _unwrapped(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """The schema of {"name", "schema"}; a schema without that around it stays as it is."""
    if "schema" not in value or value.keys() - {"name", "schema", "description", "strict"}:
        return value
    return json_object(value["schema"], f"{name}: schema", _SHAPE)


ADAPTER_NAMES = ("adapter_id", "lora_name")
_BY_KIND: dict[Kind, Callable[[str, Any], Any]] = {
    "integer": _read_int,
    "number": _read_float,
    "boolean": _read_bool,
    "strings": _read_strings,
    "token_ids": _read_ids,
    "logit_bias": _read_bias,
    "grammar": _read_grammar,
}
# Other names of a field; the last one is what vLLM called structured_outputs before.
_FIELDS = {"stop_words": "stop", "structured_outputs": "grammar", "guided_decoding": "grammar"}
# Every name that a client may use → how its value is read; None: as if it were absent.
READERS: dict[str, Callable[[str, Any], Any]] = {
    **{name: _BY_KIND[parameter.kind] for name, parameter in PARAMETERS.items()},
    "stop_words": _read_strings,
    "structured_outputs": _read_structured,
    "guided_decoding": _read_structured,
}
# vLLM's names for what we do not do: only values that ask for nothing are taken.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1, "1"),
    "best_of": (None, 1, "1"),
    "spaces_between_special_tokens": (None, True, "true"),
    "detokenize": (None, True, "true"),
    "truncate_prompt_tokens": (None,),
    "use_beam_search": (None, False, "false"),
    "early_stopping": (None, False, "false"),
    "length_penalty": (None, 1, "1", "1.0"),
    "flat_logprobs": (None, False, "false"),
    "skip_reading_prefix_cache": (None, False, "false"),
    "logits_processors": (None, []),
    "extra_args": (None, {}),
}
_NEUTRAL_STRUCTURED: dict[str, tuple[Any, ...]] = {
    "grammar": (None,),
    "structural_tag": (None,),
    "whitespace_pattern": (None,),
    "disable_additional_properties": (None, False, "false"),
    "disable_any_whitespace": (None, False, "false"),
    "disable_fallback": (None, False, True, "false", "true"),  # there is nothing to fall back to
}
