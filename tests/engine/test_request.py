"""AdapterSet: what a request runs on, as the key of queues, batches and the prefix cache."""

import pytest

from multilora.request import BASE_ONLY, AdapterSet, AdapterWeight, Request


def test_the_set_of_one_and_of_none() -> None:
    assert AdapterSet.of("sql") == (AdapterWeight("sql", 1.0),)
    assert AdapterSet.of("sql").only == "sql"
    assert AdapterSet.of("") == BASE_ONLY and BASE_ONLY.only == ""
    assert AdapterSet.of("sql") and not BASE_ONLY
    assert isinstance(AdapterSet.of(""), AdapterSet)


def test_several_adapters_have_no_only_one() -> None:
    several = AdapterSet((AdapterWeight("sql"), AdapterWeight("chat", 0.5)))
    with pytest.raises(ValueError):
        _ = several.only
    with pytest.raises(ValueError):
        _ = AdapterSet((AdapterWeight("sql"), AdapterWeight("sql"))).only


def test_equal_sets_are_one_key_and_others_are_not() -> None:
    one = AdapterSet.of("sql")
    others = [
        BASE_ONLY,
        AdapterSet.of("sq"),
        AdapterSet((AdapterWeight("sql", 0.5),)),
        AdapterSet((AdapterWeight("sql"), AdapterWeight("chat"))),
    ]
    table = {one: 1, **dict.fromkeys(others, 0)}
    assert table[AdapterSet.of("sql")] == 1 and len(table) == 1 + len(others)
    assert hash(AdapterSet.of("sql")) == hash(one)
    with pytest.raises(AttributeError):
        one.weight = 1.0  # type: ignore[attr-defined]


def test_sets_have_an_order() -> None:
    """By adapter, then weight, and a set before those that begin with it."""
    half = AdapterSet((AdapterWeight("a", 0.5),))
    both = AdapterSet((AdapterWeight("a"), AdapterWeight("b")))
    right = [BASE_ONLY, half, AdapterSet.of("a"), both, AdapterSet.of("b")]
    assert sorted([right[i] for i in (4, 2, 0, 3, 1)]) == right


def test_a_request_names_its_adapters_by_id() -> None:
    named, base = Request("r", (1,), "sql"), Request("r", (1,))
    assert named.adapters == AdapterSet.of("sql") and base.adapters == BASE_ONLY
    assert named.adapters is named.adapters  # made once: schedulers ask in every pass
