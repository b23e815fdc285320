"""Log lines as TGI writes them with --json-output."""

import json
import logging
import re
import sys

from multilora_gateway.json_lines import JsonLines, json_line


def test_a_line() -> None:
    line = json_line("WARNING", "multilora.gateway", "zwei\nZeilen: ü", created=1700000000.25)
    assert "\n" not in line
    assert json.loads(line) == {
        "timestamp": "2023-11-14T22:13:20.250000Z",
        "level": "WARN",
        "fields": {"message": "zwei\nZeilen: ü"},
        "target": "multilora.gateway",
    }


def test_a_record_with_its_exception() -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        record = logging.LogRecord("a.b", logging.ERROR, "", 0, "%s failed", ("x",), sys.exc_info())
    told = json.loads(JsonLines().format(record))
    assert (told["level"], told["target"], told["fields"]["message"]) == (
        "ERROR",
        "a.b",
        "x failed",
    )
    assert told["fields"]["exception"].endswith("ValueError: wrong")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", told["timestamp"])
