"""API keys as operators write them: no pattern becomes a key, and no mistake opens the server."""

import pytest

from multilora_gateway.api_keys import read_keys
from multilora_gateway.errors import GatewayError
from multilora_gateway.http.access import Access
from multilora_gateway.settings import Settings


@pytest.mark.parametrize(
    ("flags", "variable", "keys"),
    [
        (None, "", ()),
        (None, " \n ", ()),
        (None, "one", ("one",)),
        (None, "one\n  two: sql*, org/* \n\nbase:\n", ("one", "two:sql*,org/*", "base:")),
        (["K1:sql*, org/*"], "other", ("K1:sql*,org/*",)),
        (["one", "two:merged:*,s3://b/*"], "", ("one", "two:merged:*,s3://b/*")),
        (["a/b+c="], "", ("a/b+c=",)),
    ],
)
def test_keys(flags: list[str] | None, variable: str, keys: tuple[str, ...]) -> None:
    assert read_keys(flags, variable) == keys


def test_blanks_beside_a_comma_make_no_key() -> None:
    access = Access(Settings(api_keys=read_keys(["K1:sql*, org/*"], "")))
    limited = access.caller("Bearer K1")
    assert limited.may_use("sql") and limited.may_use("org/x") and not limited.may_use("json")
    with pytest.raises(GatewayError, match="valid API key"):
        access.caller("Bearer org/*")


WRONG = {
    "K1:sql* org/*": "API key 1 holds white space",
    "open mine:sql*": "API key 1 holds white space",
    "one two": "API key 1 holds white space",
    "good:a*\n:sql*": "API key 2 is empty before its colon",
    ":sql*": "API key 1 is empty",
    "K1:sql*\norg/x": "API key 2 holds '/'",
    "sql*": "API key 1 holds '*'",
    "one,two": "API key 1 holds ','",
    "K1:sql*,": "API key 1 ends in a comma",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_what_could_be_half_of_something(text: str, message: str) -> None:
    for flags, variable in ((None, text), (text.splitlines(), "")):
        with pytest.raises(ValueError, match="write KEY, or KEY:sql") as caught:
            read_keys(flags, variable)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize("flags", [[""], [" "], ["good:a*", ""]])
def test_an_empty_flag_opens_nothing(flags: list[str]) -> None:
    with pytest.raises(ValueError, match="--api-key is empty; give the key, or leave"):
        read_keys(flags, "key")
