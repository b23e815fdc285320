"""An action and its keys → AdminCommand, or an error that says what to do."""

import json
from typing import Any

import pytest

from multilora.adapters.admin.command import ACTIONS, AdminCommand, parse_admin_command
from multilora.adapters.merging.recipe import MergeRecipe
from multilora.errors import ErrorCode, RequestError


def test_all_that_an_action_takes() -> None:
    assert parse_admin_command({"action": "list"}) == AdminCommand("list")
    given = {
        "action": "load", "adapter_id": "é", "source": "org/x", "revision": "v1", "timeout": 3.0
    }  # fmt: skip
    assert parse_admin_command(given) == AdminCommand("load", "é", "org/x", "v1", timeout=3.0)
    given = {"action": "unload", "adapter_id": "a", "cancel": True, "timeout": 0.5}
    assert parse_admin_command(given) == AdminCommand("unload", "a", cancel=True, timeout=0.5)


def test_a_merge_is_json_and_secrets_are_not_shown() -> None:
    merge = {"ids": ["a", "b"], "weights": [1, 0.5]}
    given = {"action": "merge", "merge": json.dumps(merge), "adapter_token": "hf_secret"}
    command = parse_admin_command({**given, "admin_key": "a secret"})
    assert command.merge == MergeRecipe(("a", "b"), (1.0, 0.5))
    assert (command.adapter_token, command.admin_key) == ("hf_secret", "a secret")
    assert "secret" not in repr(command)


@pytest.mark.parametrize("action", [name for name in ACTIONS if name != "merge"])
def test_what_is_empty_is_not_given(action: str) -> None:
    name = "" if action in ("list", "describe") else "a"
    given = dict.fromkeys(("source", "revision", "adapter_token", "merge", "admin_key"), "")
    command = {"action": action, "adapter_id": name, "cancel": False, **given}
    assert parse_admin_command(command) == AdminCommand(action, name)


LOAD, UNLOAD = {"action": "load", "adapter_id": "a"}, {"action": "unload", "adapter_id": "a"}
LIST, PIN, MERGE = {"action": "list"}, {"action": "pin", "adapter_id": "a"}, {"action": "merge"}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "action must be one of list, info, load, unload, pin, unpin, .*got None"),
        ({"action": "delete"}, "action must be one of list, .* got 'delete'"),
        ({"action": "x" * 100_000}, "action must be one of list"),
        (LOAD | {"adapter_id": "/n" * 2049}, "adapter_id must have at most 4096 characters; got"),
        (LOAD | {"source": "/n" * 2049}, "source must have at most 4096 characters"),
        ({"action": "load"}, "load needs an adapter_id"),
        (PIN | {"adapter_id": ""}, "pin needs an adapter_id"),
        (LIST | {"adapter_id": "a"}, "list takes no adapter_id"),
        (PIN | {"source": "x"}, "pin takes no source"),
        (UNLOAD | {"revision": "x"}, "unload takes no revision"),
        (LOAD | {"cancel": True}, "load takes no cancel"),
        (LIST | {"timeout": 0.0}, "timeout must be a number of seconds above 0.* got 0"),
        (LIST | {"timeout": -1.5}, "timeout must be"),
        (LIST | {"timeout": float("nan")}, "timeout must be"),
        (LIST | {"timeout": float("inf")}, "timeout must be"),
        (MERGE, "merge needs a merge"),
        (MERGE | {"merge": "{"}, "merge is not JSON"),
        (MERGE | {"merge": "[" * 100_000}, "merge is not JSON"),
        (MERGE | {"adapter_id": "a"}, "merge takes no adapter_id"),
        (LOAD | {"merge": '{"ids": ["a"]}'}, "load takes no merge"),
        (PIN | {"adapter_token": "hf_x"}, "pin takes no adapter_token"),
        (MERGE | {"adapter_token": "hf_x y"}, "adapter_token is no Hub token"),
    ],
    ids=lambda case: str(case)[:60],
)
def test_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        parse_admin_command(given)
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert len(caught.value.message) < 300
