"""Sampling parameters: the one table of their names, types, defaults, ranges and tensor types.

The table is the dataclass SamplingParams, whose fields carry these facts. The engine reads and
checks requests with the table. The inputs in the client and in the config.pbtxt files, and the
bounds in the gateway's APIs, are derived from it.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 128
MAX_BAD_WORDS = 128
MAX_BAD_WORD = 256  # characters
MAX_LOGIT_BIAS = 100.0
NUM_SEEDS = 2**64

Kind = Literal["integer", "number", "boolean", "strings", "token_ids", "logit_bias", "grammar"]
_METADATA = "parameter"
# re.escape would escape more than the engine's syntax of regular expressions allows.
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")


class ParameterError(ValueError):
    """A sampling parameter has a value outside its range; the message names both."""


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`; `words` complete the sentence "x must be …"."""

    words: str
    low: float = -math.inf
    high: float = math.inf
    excludes_low: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.excludes_low else value >= self.low
        # NaN is neither above nor below; a whole number may be too large to be made a float.
        return above and value <= self.high and abs(value) != math.inf

    def other_than(self, value: float) -> float:
        """Some number in the range, halfway to an end that is not `value`."""
        low, high = max(self.low, value - 1), min(self.high, value + 1)
        return (value + (high if high > value else low)) / 2


@dataclass(frozen=True)
class Parameter:
    """One row of the table.

    `name` is a field of SamplingParams and a key of the JSON input `sampling_parameters`. `tensor`
    is the name of the typed input of the Triton models and `datatype` its KServe type; both are ""
    where JSON alone carries the parameter. Parameters without a range have checks of their own in
    SamplingParams.
    """

    name: str
    kind: Kind
    default: Any
    range: Range | None
    tensor: str
    datatype: str


def _row(
    kind: Kind, datatype: str, range_: Range | None = None, tensor: str = ""
) -> dict[str, Any]:
    """The metadata of a field of SamplingParams; `tensor` "" is the name of the field."""
    return {_METADATA: {"kind": kind, "datatype": datatype, "range": range_, "tensor": tensor}}


@dataclass(frozen=True)
class Grammar:
    """What the whole answer must match: `text` is a JSON schema or a regular expression. With
    `after` it is what follows the first `after`, and some white space; before it comes anything."""

    kind: Literal["json", "regex"]
    text: str
    after: str = ""

    @staticmethod
    def of_choices(texts: Iterable[str]) -> "Grammar":
        """One of these texts, and nothing else."""
        return Grammar("regex", "|".join(_SPECIAL.sub(r"\\\g<0>", text) for text in texts))


_MAX_TOKENS = Range("0 (generate nothing) or positive", 0)
_MIN_TOKENS = Range("between 0 and max_tokens", 0)
_TEMPERATURE = Range("0 (greedy) or up to 100", 0, 100)
_PART = Range("above 0 and at most 1", 0, 1, excludes_low=True)
_TOP_K = Range("0 (off) or positive", 0)
_MIN_P = Range("between 0 and 1", 0, 1)
_REPETITION = Range("0.01 to 100 (1 is off)", 0.01, 100)
_PENALTY = Range("between -2 and 2", -2, 2)
_SEED = Range("between 0 and 2**64 - 1", 0, NUM_SEEDS - 1)
_LOGPROBS = Range(f"0 to {MAX_LOGPROBS}", 0, MAX_LOGPROBS)
_STOP = _row("strings", "BYTES", tensor="stop_words")
_BIAS = Range("between -100 and 100", -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)


@dataclass(frozen=True)
class SamplingParams:
    """How to pick tokens. Checked on construction; raises ParameterError.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 switch those filters off. Penalties act on
    prompt and output (`repetition_penalty`) or output only (`presence_`, `frequency_penalty`).
    `typical_p` 1 switches locally typical sampling off. `logit_bias` holds (token id, what is added
    to its logit), each id once. From `min_tokens` on, one of `stop_token_ids` ends the answer as
    end-of-sequence does, also where that is ignored. `grammar` binds the answer, which ends as soon
    as it is complete and cannot go on, whatever `ignore_eos` says.
    `include_stop_str_in_output` leaves in the text what ended it, a stop string or a token of
    `stop_token_ids`. `bad_words` are texts that do not come, with or without a space before them,
    as the tokenizer writes them. Of `allowed_token_ids`, where there are any, one is picked each
    time; end-of-sequence, too, comes only if it is one of them.
    `skip_special_tokens` false shows special tokens in the text, but for the one that ends it.
    `logprobs` is how many most likely tokens to report beside the chosen one; None reports nothing.
    `prompt_logprobs` is the same for the tokens of the prompt, but for the first.
    """

    max_tokens: int = field(default=16, metadata=_row("integer", "INT32", _MAX_TOKENS))
    min_tokens: int = field(default=0, metadata=_row("integer", "INT32", _MIN_TOKENS))
    temperature: float = field(default=0.0, metadata=_row("number", "FP32", _TEMPERATURE))
    top_p: float = field(default=1.0, metadata=_row("number", "FP32", _PART))
    top_k: int = field(default=0, metadata=_row("integer", "INT32", _TOP_K))
    min_p: float = field(default=0.0, metadata=_row("number", "FP32", _MIN_P))
    typical_p: float = field(default=1.0, metadata=_row("number", "FP32", _PART))
    repetition_penalty: float = field(default=1.0, metadata=_row("number", "FP32", _REPETITION))
    presence_penalty: float = field(default=0.0, metadata=_row("number", "FP32", _PENALTY))
    frequency_penalty: float = field(default=0.0, metadata=_row("number", "FP32", _PENALTY))
    seed: int | None = field(default=None, metadata=_row("integer", "UINT64", _SEED))
    stop: tuple[str, ...] = field(default=(), metadata=_STOP)
    stop_token_ids: tuple[int, ...] = field(default=(), metadata=_row("token_ids", ""))
    include_stop_str_in_output: bool = field(default=False, metadata=_row("boolean", ""))
    bad_words: tuple[str, ...] = field(default=(), metadata=_row("strings", ""))
    allowed_token_ids: tuple[int, ...] = field(default=(), metadata=_row("token_ids", ""))
    grammar: Grammar | None = field(default=None, metadata=_row("grammar", "BYTES"))
    ignore_eos: bool = field(default=False, metadata=_row("boolean", "BOOL"))
    logprobs: int | None = field(default=None, metadata=_row("integer", "", _LOGPROBS))
    prompt_logprobs: int | None = field(default=None, metadata=_row("integer", "", _LOGPROBS))
    logit_bias: tuple[tuple[int, float], ...] = field(default=(), metadata=_row("logit_bias", ""))
    skip_special_tokens: bool = field(default=True, metadata=_row("boolean", ""))

    def __post_init__(self) -> None:
        for parameter in PARAMETERS.values():
            value = getattr(self, parameter.name)
            if parameter.range and value is not None and value not in parameter.range:
                raise _outside(parameter.name, parameter.range, value)
        if self.min_tokens > self.max_tokens:
            raise _outside("min_tokens", _MIN_TOKENS, self.min_tokens)
        self._check_stops()
        self._check_words()
        for token_id, bias in self.logit_bias:
            if token_id < 0 or bias not in _BIAS:
                raise ParameterError(
                    f"logit_bias must map token ids to numbers {_BIAS.words}; "
                    f"got {bias} for {token_id}"
                )

    def _check_stops(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS or not all(self.stop):
            raise ParameterError(
                f"stop_words must be at most {MAX_STOP_STRINGS} strings, none empty; "
                f"got {list(self.stop)}"
            )
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            raise ParameterError(
                f"stop_token_ids must be at most {MAX_STOP_TOKENS} token ids; send fewer than "
                f"{len(self.stop_token_ids)}"
            )

    def _check_words(self) -> None:
        words = self.bad_words
        if len(words) > MAX_BAD_WORDS or not all(0 < len(word) <= MAX_BAD_WORD for word in words):
            raise ParameterError(
                f"bad_words must be at most {MAX_BAD_WORDS} strings of 1 to {MAX_BAD_WORD} "
                "characters; send fewer, or shorter ones"
            )
        if self.allowed_token_ids and self.grammar:
            raise ParameterError(
                "allowed_token_ids and a grammar may leave no token together; send one of them"
            )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _outside(name: str, allowed: Range, value: float) -> ParameterError:
    return ParameterError(f"{name} must be {allowed.words}; got {value}")


def _table() -> Mapping[str, Parameter]:
    rows: dict[str, Parameter] = {}
    for each in fields(SamplingParams):
        facts = dict(each.metadata[_METADATA])
        facts["tensor"] = facts["tensor"] or (each.name if facts["datatype"] else "")
        rows[each.name] = Parameter(each.name, default=each.default, **facts)
    return MappingProxyType(rows)


PARAMETERS = _table()
