"""A response of the engine → what it adds to which request."""

import json
from typing import Any

import pytest

from multilora_gateway.backend.messages import Delta, Token, columns, delta_of


def deltas(values: dict[str, Any], wanted: dict[str, int | None]) -> list[tuple[str, Delta]]:
    """Of the `wanted` requests, by how many of the likeliest tokens they ask for."""
    return [
        (name, delta_of(values, column, ids, wanted[name]))
        for name, column, ids in columns(values)
        if name in wanted
    ]


def entries(logprob: float, *others: tuple[int, float]) -> dict[str, Any]:
    """Of the token 7; every token there has a rank, the picked one too."""
    found = {"7": {"logprob": logprob, "rank": 5}}
    for rank, (token, value) in enumerate(others, 1):
        found[str(token)] = {"logprob": value, "rank": rank}
    return found


@pytest.mark.parametrize(
    ("count", "top"),
    [(None, ()), (0, ()), (1, ((8, -0.25),)), (2, ((8, -0.25), (9, -2.0)))],
)
def test_the_likeliest_tokens_are_as_many_as_asked_for(count: int | None, top: Any) -> None:
    told = entries(-3.0, *((8, -0.25), (9, -2.0))[: count or 0])
    values: dict[str, Any] = {
        "request_id": ["a"],
        "text_output": ["a"],
        "output_ids": [7],
        "num_output_tokens": [1],
        "finish_reason": ["None"],
        "logprobs": [json.dumps([told])],
    }
    ((name, delta),) = deltas(values, {"a": count})
    assert (name, delta.tokens) == ("a", (Token(7, None if count is None else -3.0, top),))


def test_each_request_has_its_column() -> None:
    values: dict[str, Any] = {
        "request_id": ["left", "a", "b", "a"],
        "text_output": ["", "xy", "", "z"],
        "output_ids": [1, 2, 3, 7],
        "num_output_tokens": [1, 2, 0, 1],
        "finish_reason": ["None", "None", "length", "stop"],
        "queue_time": [9.0, 0.5, 0.25, 0.5],
        "logprobs": ["null", "null", "[]", json.dumps([entries(-1.0)])],
        "prompt_logprobs": ["[]", "[]", "[null, null]", "[]"],
    }
    found = deltas(values, {"a": None, "b": 0})
    assert found == [
        ("a", Delta("xy", (Token(2), Token(3)), None, 0.5)),
        ("b", Delta("", (), "length", 0.25, (None, None))),
        ("a", Delta("z", (Token(7),), "stop", 0.5)),
    ]


def test_a_message_without_columns_says_nothing() -> None:
    assert not deltas({}, {"a": None})
