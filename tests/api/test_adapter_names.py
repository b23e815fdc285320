"""Adapter names: the rules that the engine, the gateway and the launcher share."""

import os
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multilora_api.adapter_names import (
    MAX_LENGTH,
    is_url,
    name_problem,
    shown,
    split_item,
    split_revision,
)
from support.laws import LAW

# Names that are nearly paths, URLs or revisions, and any text at all.
PARTS = st.sampled_from(["..", "..", ".", "", "a", "a", "~", "%2e%2e", "\\", "b@..", "\n", "::"])
PATHS = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
TEXTS = st.one_of(st.text(max_size=30), PATHS, PATHS.map("s3://{}".format))
WORDS = st.text(st.characters(exclude_characters="=@,/:.~", exclude_categories=["Zs", "Cc", "Cs"]),
                min_size=1)  # fmt: skip


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
    assert split_revision("org/name") == ("org/name", "")
    assert split_revision("s3://bucket/a@b") == ("s3://bucket/a@b", "")


@pytest.mark.parametrize(
    ("item", "parts"),
    [
        ("a", ("a", "a", "")),
        ("org/a@v1", ("org/a", "org/a", "v1")),
        ("sql = ./a", ("sql", "./a", "")),
        ("sql=org/a @ v1", ("sql", "org/a", "v1")),
        ("s3://user@bucket/a", ("s3://user@bucket/a", "s3://user@bucket/a", "")),
        ("s3://b/x=1/a", ("s3://b/x=1/a", "s3://b/x=1/a", "")),
        ("sql = s3://b/x=1/a@2", ("sql", "s3://b/x=1/a@2", "")),
        ("a=b=c", None),
        ("a@b@c", None),
        ("=a", None),
        ("", None),
    ],
)
def test_items_of_lora_adapters(item: str, parts: tuple[str, str, str] | None) -> None:
    assert split_item(item) == parts


def test_what_requests_hold_is_shown_in_part() -> None:
    assert shown("it's\n") == '"it\'s\\n"'
    assert shown("x" * 100) == repr("x" * 100)
    assert shown("x" * 10**7) == repr("x" * 100 + "…")
    assert shown([1, "a"]) == "[1, 'a']"
    assert shown(["x" * 10**5]) == "['" + "x" * 98 + "…"


@settings(LAW, max_examples=300)
@given(TEXTS)
def test_no_name_leads_out_of_its_folder(name: str) -> None:
    if name_problem(name):
        return
    for form in (name, unquote(name)) if is_url(name) else (name,):
        for part in (form, *split_revision(form)):
            path = part.partition("://")[2] or part
            assert os.path.normpath(os.path.join("/root/of/all", path)).startswith("/root/of/all")
            assert "\0" not in path and (is_url(name) or not path.startswith("~"))


@LAW
@given(WORDS, WORDS, st.one_of(st.just(""), WORDS))
def test_an_item_is_read_as_it_was_written(name: str, location: str, revision: str) -> None:
    name, location, revision = (word.strip() for word in (name, location, revision))
    item = f"{name}={location}" + (f"@{revision}" if revision else "")
    if name and location:
        assert split_item(item) == (name, location, revision)
