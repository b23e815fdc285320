"""Adapter names: the rules that the engine, the gateway and the launcher share."""

import pytest

from multilora_api.adapter_names import MAX_LENGTH, name_problem, split_revision


@pytest.mark.parametrize(
    "name",
    ["a", "org/name", "org/name@v1", "team/a/b", "s3://bucket/path", "x" * MAX_LENGTH, "ünï"],
)
def test_names(name: str) -> None:
    assert name_problem(name) == ""


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("x" * (MAX_LENGTH + 1), "has 257 characters"),
        ("/etc", "is a path of the server"),
        ("~/a", "is a path of the server"),
        ("./a", "is a path of the server"),
        ("a\\b", "holds a backslash or a control character"),
        ("a\x00", "holds a backslash or a control character"),
        ("\ud800", "holds a backslash or a control character"),
        ("a\u2028b", "holds a backslash or a control character"),
        ("", "has an empty part"),
        ("a//b", "has an empty part"),
        ("a/../b", "has an empty part, or one that is"),
        ("a@..", "has an empty part, or one that is"),
        ("s3://bucket/%2e%2e/x", "has an empty part, or one that is"),
        ("zip::s3://bucket/x", "chained URLs"),
        ("s3://a::b/x", "chained URLs"),
    ],
)
def test_no_names(name: str, problem: str) -> None:
    assert problem in name_problem(name)


def test_a_revision_is_no_part_of_a_url() -> None:
    assert split_revision("org/name@v1") == ("org/name", "v1")
    assert split_revision("s3://bucket/a@b") == ("s3://bucket/a@b", "")
