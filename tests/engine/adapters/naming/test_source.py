"""The kinds of locations, names that requests may give, and errors that name their adapter."""

import pytest

from multilora.adapters.naming.source import AdapterSource, about_adapter, check_name
from multilora.errors import ErrorCode, RequestError
from multilora_api.admin import Origin


@pytest.mark.parametrize(
    ("location", "kind"),
    [
        ("/a", "folder"), ("./a", "folder"), ("../a", "folder"), ("~/a", "folder"),
        ("s3://b/a", "url"), ("abfs+x.y://b", "url"), ("hf://org/name", "url"),
        ("org/a", "id"), ("a", "id"), ("s3:/b", "id"), ("3s://b", "id"),
    ],
)  # fmt: skip
def test_a_location_is_one_of_three_kinds(location: str, kind: str):
    source = AdapterSource("x", location)
    assert source.origin is Origin.REGISTERED
    assert (source.is_folder, source.is_url) == (kind == "folder", kind == "url")


@pytest.mark.parametrize(
    "name",
    [
        "sql", "team/sql", "org/name@v1.2", "org/name@refs/pr/1", "s3://bucket/a/b", "日本語/ ä b",
        "a...b", "..a", "-x", "a:b", "x" * 256, "s3://user@bucket/a%20b", "👩‍🔬",
    ],
)  # fmt: skip
def test_names_a_request_may_give(name: str):
    check_name(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *[(name, "is a path of the server") for name in ("/etc", "./a", "../a", "~root/a", "~")],
        *[
            (name, "has an empty part, or one that is")
            for name in (
                "", "a/", "a//b", "a/..", "a/../b", "a/./b", "..", ".", "org/a@", "org/a@..",
                "org/a@../../x", "org/a@v/../x", "s3://b/../c", "s3://b//c", "s3:///c", "s3://b/",
                "s3://b/%2e%2E/c", "s3://b/a%2F..%2fc", "file:///etc/x",
            )
        ],
        *[
            (name, "backslash or a control character")
            for name in ("a\0b", "a\nb", "a\x1b[2J", "a\x85", "a\\b", "\ud800", "a\u2028b",
                         "s3://b/%00", "s3://b/..%5c")
        ],
        ("simplecache::s3://b/c", "chained URLs"),
        ("zip://x::s3://b/c", "chained URLs"),
        ("s3://b/x%3A%3Afile://c", "chained URLs"),
        ("x" * 257, "has 257 characters, but may have 256"),
        ("x" * 10**7, "has 10000000 characters"),
    ],
)  # fmt: skip
def test_names_that_are_refused_before_anything_opens_them(name: str, reason: str):
    with pytest.raises(RequestError) as caught:
        check_name(name)
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert reason in caught.value.message and "adapter_id" in caught.value.message
    assert len(caught.value.message) < 300 and caught.value.message.isprintable()


def test_an_error_about_an_adapter_names_it_and_keeps_its_code():
    with (
        pytest.raises(RequestError, match=r"^adapter \"it's\": no such file$") as caught,
        about_adapter("it's"),
    ):
        raise RequestError(ErrorCode.NOT_FOUND, "no such file")
    assert caught.value.code is ErrorCode.NOT_FOUND
