"""Anything its own OpenAPI description allows, and much that it forbids, gets no 5xx answer."""

from pathlib import Path

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import BaseSchema

_SECONDS = 60
_SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
_EXAMPLES = 6  # a route; seeded, so that a failure comes again
# Other tests need the adapters as they are.
_LEFT_OUT = "^/(adapters|v1)/(unload|unload_lora_adapter)$"


@pytest.fixture(scope="module")
def description(gateway: str) -> BaseSchema:
    raw = requests.get(f"{gateway}/openapi.json", timeout=_SECONDS).json()
    schema = schemathesis.openapi.from_dict(raw).exclude(path_regex=_LEFT_OUT)
    schema.config.update(base_url=gateway)
    return schema


def test_no_request_is_answered_with_a_server_error(
    description: BaseSchema, tmp_path: Path
) -> None:
    settings = hypothesis.settings(
        max_examples=_EXAMPLES, deadline=None, database=None, derandomize=True,
        suppress_health_check=_SLOW,
    )  # fmt: skip
    checked = 0
    for result in description.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()

        @settings
        @hypothesis.given(case=operation.as_strategy())
        def run(case: schemathesis.Case) -> None:
            body = case.body if isinstance(case.body, dict) else {}
            for limits in (body, body.get("parameters")):  # short answers are enough
                if isinstance(limits, dict):
                    limits.pop("best_of", None)
            case.call_and_validate(checks=[not_a_server_error], timeout=_SECONDS)

        run()
        checked += 1
    assert checked >= 15
