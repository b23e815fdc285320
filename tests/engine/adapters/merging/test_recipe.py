"""What a request may say about a merge, and when two merges are the same."""

import json
from typing import Any

import pytest

from multilora.adapters.merging.recipe import MergeRecipe, parse_merge
from multilora.errors import ErrorCode, RequestError

PARTS = ["11", "22"]


def recipe(**fields: Any) -> MergeRecipe:
    return parse_merge({"ids": ["a", "b"], **fields})


def test_defaults_and_all_fields() -> None:
    assert recipe() == MergeRecipe(("a", "b"), (1.0, 1.0), "linear", 1.0, "total")
    given = recipe(
        weights=[2, -0.5], merge_strategy="ties", density=0.2, majority_sign_method="frequency"
    )
    assert given == MergeRecipe(("a", "b"), (2.0, -0.5), "ties", 0.2, "frequency")
    assert parse_merge(json.dumps({"ids": ["a", "b"]})) == recipe(weights=[], density=None)


def test_what_has_no_effect_makes_no_other_merge() -> None:
    same = recipe(density=0, majority_sign_method="frequency")
    assert same == recipe()
    assert recipe(merge_strategy="dare_linear", density=0.5, majority_sign_method="frequency") == (
        recipe(merge_strategy="dare_linear", density=0.5)
    )
    assert parse_merge({"ids": ["a"], "merge_strategy": "ties", "density": 0.1}) == MergeRecipe(
        ("a",), (1.0,)
    )


def test_the_digest_tells_parts_and_recipes_apart() -> None:
    recipes = [
        recipe(),
        recipe(weights=[1, 2]),
        recipe(merge_strategy="ties"),
        recipe(merge_strategy="ties", density=0.5),
        recipe(merge_strategy="dare_ties", density=0.5),
        recipe(merge_strategy="ties", majority_sign_method="frequency"),
    ]
    digests = {one.digest(PARTS) for one in recipes} | {recipe().digest(["11", "23"])}
    assert len(digests) == len(recipes) + 1
    other_names = parse_merge({"ids": ["x", "y"]})
    assert other_names.digest(PARTS) == recipe().digest(PARTS)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("{", "merge is not JSON"),
        ("[" * 100_000, "merge is not JSON"),
        ("[1]", "must be a JSON object"),
        ({"ids": []}, "ids must be a list of adapter ids"),
        ({"ids": "a"}, "ids must be a list"),
        ({"ids": ["a", ""]}, "ids must be a list"),
        ({"ids": ["a", "a"]}, "names an adapter twice"),
        ({"ids": [str(i) for i in range(17)]}, "at most 16"),
        ({"ids": ["a"], "id": "b"}, "unknown key 'id'"),
        ({"ids": ["a"], "weights": [1, 2]}, "2 weights are given for 1 ids"),
        ({"ids": ["a"], "weights": ["1"]}, "weights must be numbers"),
        ({"ids": ["a"], "weights": [True]}, "weights must be numbers"),
        ({"ids": ["a"], "weights": [float("nan")]}, "weights must be numbers"),
        ({"ids": ["a"], "weights": [10**400]}, "weights must be numbers"),
        ({"ids": ["a"], "merge_strategy": "svd"}, "must be one of linear, ties, dare_linear"),
        ({"ids": ["a"], "majority_sign_method": 1}, "must be one of total, frequency"),
        ({"ids": ["a"], "density": 1.5}, "density must be a number from 0 to 1"),
        ({"ids": ["a"], "density": float("inf")}, "density must be"),
        ({"ids": ["a", "b"], "merge_strategy": "ties", "density": 0}, "density 0 leaves nothing"),
    ],
)
def test_refused(given: object, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        parse_merge(given)
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert len(caught.value.message) < 400
