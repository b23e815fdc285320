"""A request and its limits; AdapterSet: what it runs on, the key of queues, batches and caches."""

import pytest

from multilora.errors import RequestError
from multilora.request import BASE_ONLY, AdapterSet, AdapterWeight, Request, RequestLimits
from multilora_api.sampling import SamplingParams


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


def test_the_bits_of_what_is_allowed() -> None:
    def bits(*ids: int) -> bytes:
        return Request("r", (1,), sampling=SamplingParams(allowed_token_ids=ids)).allowed_bits

    assert (bits(), bits(0), bits(9, 1, 9), bits(16)) == (b"", b"\1", b"\2\2", b"\0\0\1")


@pytest.mark.parametrize(
    ("prompt", "asked", "granted"),
    [(3, (5, 2), (5, 2)), (3, (8, 7), (7, 7)), (9, (16, 4), (1, 1)), (12, (16, 0), (1, 0))],
)
def test_what_is_granted_leaves_room_for_the_prompt(
    prompt: int, asked: tuple[int, int], granted: tuple[int, int]
) -> None:
    """Of 10 tokens; a prompt that is too long is refused later."""
    sampling = SamplingParams(max_tokens=asked[0], min_tokens=asked[1])
    request = Request("r", (1,) * prompt, sampling=sampling)
    got = RequestLimits(100, 10, 100).granted(request).sampling
    assert (got.max_tokens, got.min_tokens) == granted


def test_allowed_tokens_are_tokens_of_the_base_model() -> None:
    request = Request("r", (1,), sampling=SamplingParams(allowed_token_ids=(5, 100)))
    with pytest.raises(RequestError, match="allowed_token_ids holds 100; token ids of this base"):
        RequestLimits(100, 100, 100).check(request)
