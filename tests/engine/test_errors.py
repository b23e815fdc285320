"""What is said of errors of others."""

import pytest

from multilora.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  field 'a':\n\n  expected int\n  more"), "field 'a': expected int"),
        (ValueError("alone:"), "alone:"),
        (KeyError("foo"), "there is no 'foo'"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_the_first_line_says_something(error: Exception, said: str):
    assert first_line(error) == said
