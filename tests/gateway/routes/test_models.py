"""GET /v1/models: of all adapters that the engine tells of, those that can answer."""

from typing import Any

import pytest

from multilora_gateway.routes.openai import _may_answer
from support.fake.adapters import UNREAD, entry


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"origin": "directory", "tier": "disk", **UNREAD}, True),  # it will be read
        ({"state": "loading", "origin": "directory", **UNREAD}, True),
        ({"state": "failed", "error": "DoRA", "error_code": "INVALID_ARG", **UNREAD}, False),
        ({"state": "failed", "error": "gone", "error_code": "NOT_FOUND", **UNREAD}, False),
        ({"state": "failed", "error": "its disk", "error_code": "UNAVAILABLE", **UNREAD}, True),
        ({"error": "new files are bad", "error_code": "INVALID_ARG"}, True),  # the old ones serve
        ({"origin": "on demand"}, True),
        ({"origin": "on demand", "state": "loading", **UNREAD}, False),  # it may be misspelt
    ],
)
def test_who_may_answer(changes: dict[str, Any], expected: bool) -> None:
    assert _may_answer(entry("x", **changes)) is expected
