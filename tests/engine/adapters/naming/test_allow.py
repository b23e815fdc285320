"""Which adapters the patterns of --adapter-allow let a request have."""

import pytest

from multilora.errors import ErrorCode, StartupError
from multilora_api.admin import Origin
from support.engine.catalogs import catalog_of, refusal


@pytest.mark.parametrize(
    ("allow", "adapter_id", "is_allowed"),
    [
        ("", "org/x", False),
        ("org/*", "org/x", True),
        ("org/*", "org/x@main", True),
        ("org/*", "Org/x", False),
        ("org/*", "organic/x", False),
        ("org/*", "org/x/y", False),  # no Hub id
        ("org/*", "org/x y", False),
        ("org/*", "my-org/x", False),
        ("other/*, org/sql-*", "org/sql-v2", True),
        ("org/sql-?", "org/sql-22", False),
        ("org/[ab]", "org/b", True),
        ("org/x", "org/x", True),
        ("*", "org/x", True),
        ("*", "s3://bucket/x", False),  # of Hub ids only
        ("*/x", "s3://bucket/x", False),
        ("s3://bucket/*", "s3://bucket/a/b", True),
        ("s3://bucket/*", "s3://bucket2/a", False),
        ("s3://bucket/*", "gs://bucket/a", False),
        ("s3://*", "org/x", False),
        ("*://*", "gs://bucket/a", True),
        ("*://*,file://*", "file://etc/x", False),
        ("*://*,LOCAL://*", "LOCAL://etc/x", False),
        ("/models/*", "models/x", False),
    ],
)
def test_patterns(allow: str, adapter_id: str, is_allowed: bool) -> None:
    for patterns in (allow, allow.split(","), [allow]):
        catalog = catalog_of(allow=patterns)
        if is_allowed:
            assert catalog.resolve(adapter_id).origin is Origin.ON_DEMAND
        else:
            refusal(catalog.resolve, adapter_id)


@pytest.mark.parametrize(
    "adapter_id",
    ["org/..", "org/../x", "s3://bucket/../x", "s3://bucket/a::file:///etc", "/models/x", "org//x",
     "s3://bucket/%2e%2e/x", "org/x@../..", "org/x\n", "x" * 300],
)  # fmt: skip
def test_what_no_pattern_allows(adapter_id: str) -> None:
    catalog = catalog_of(allow=["*", "org/*", "s3://bucket/*", "/models/*", "*://*"])
    refusal(catalog.resolve, adapter_id, code=ErrorCode.INVALID_ARG)


def test_a_pattern_with_a_revision_would_never_match() -> None:
    with pytest.raises(StartupError, match="adapter_allow pattern 'org/x@v1' names a revision"):
        catalog_of(allow="org/x@v1")
