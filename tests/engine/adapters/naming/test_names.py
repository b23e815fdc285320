"""What names of adapters may look like, and what they mean."""

import pytest

from multilora.adapters.naming.source import check_name
from multilora.errors import ErrorCode, RequestError
from multilora_api.adapter_names import shown, split_revision


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


def test_text_of_requests_is_shown_in_part():
    assert shown("it's\n") == '"it\'s\\n"'
    assert shown("x" * 100) == repr("x" * 100)
    assert shown("x" * 10**7) == repr("x" * 100 + "…")


def test_revisions():
    assert split_revision("org/a@v1") == ("org/a", "v1")
    assert split_revision("org/a") == ("org/a", "")
    assert split_revision("s3://me@bucket/a") == ("s3://me@bucket/a", "")
