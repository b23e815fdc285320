"""An administrator's JSON object → AdminCommand, or an error that says what to do."""

import json

import pytest

from multilora.adapters.admin.command import ACTIONS, AdminCommand, parse_admin_command
from multilora.adapters.merging.recipe import MergeRecipe
from multilora.errors import ErrorCode, RequestError


def test_all_that_an_action_takes() -> None:
    assert parse_admin_command('{"action": "list"}') == AdminCommand("list")
    text = (
        '{"action": "load", "adapter_id": "é", "source": "org/x", "revision": "v1", "timeout": 3}'
    )
    assert parse_admin_command(text) == AdminCommand("load", "é", "org/x", "v1", timeout=3.0)
    text = '{"action": "unload", "adapter_id": "a", "cancel": true, "timeout": 0.5}'
    assert parse_admin_command(text) == AdminCommand("unload", "a", cancel=True, timeout=0.5)


def test_a_merge_as_text_or_object_and_a_token_that_is_not_shown() -> None:
    merge = {"ids": ["a", "b"], "weights": [1, 0.5]}
    given = {"action": "merge", "merge": merge, "adapter_token": "hf_secret"}
    command = parse_admin_command(json.dumps(given))
    assert command.merge == MergeRecipe(("a", "b"), (1.0, 0.5))
    assert command.adapter_token == "hf_secret" and "secret" not in repr(command)
    assert parse_admin_command(json.dumps({**given, "merge": json.dumps(merge)})) == command


@pytest.mark.parametrize("action", [name for name in ACTIONS if name != "merge"])
def test_empty_and_null_are_not_given(action: str) -> None:
    name = "" if action in ("list", "describe") else "a"
    text = (
        f'{{"action": "{action}", "adapter_id": "{name}", "source": "", "revision": null, '
        '"cancel": false, "timeout": null}'
    )
    assert parse_admin_command(text) == AdminCommand(action, name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "admin is not JSON .*; send for example"),
        ("[" * 100_000, "admin is not JSON"),
        ("[]", "admin must be a JSON object; got list; send for example"),
        ("{}", "action must be one of list, info, load, unload, pin, unpin, .*got None"),
        ('{"action": "delete"}', "action must be one of list, .* got 'delete'"),
        ('{"action": ["list"]}', "action must be one of list"),
        ('{"action": "load", "id": "a"}', "unknown key 'id'; the action .* takes adapter_id, "),
        (
            '{"action": "load", "adapter_id": 3}',
            "adapter_id must be a string of at most 4096 characters; got 3",
        ),
        (
            f'{{"action": "load", "adapter_id": "{"/n" * 2049}"}}',
            "adapter_id must be a string of at",
        ),
        ('{"action": "load", "adapter_id": "a", "source": {}}', "source must be a string"),
        ('{"action": "load"}', "load needs an adapter_id"),
        ('{"action": "pin", "adapter_id": ""}', "pin needs an adapter_id"),
        ('{"action": "list", "adapter_id": "a"}', "list takes no adapter_id"),
        ('{"action": "pin", "adapter_id": "a", "source": "x"}', "pin takes no source"),
        ('{"action": "unload", "adapter_id": "a", "revision": "x"}', "unload takes no revision"),
        ('{"action": "load", "adapter_id": "a", "cancel": true}', "load takes no cancel"),
        ('{"action": "unload", "adapter_id": "a", "cancel": "yes"}', "cancel must be true or fal"),
        ('{"action": "unload", "adapter_id": "a", "cancel": 0}', "cancel must be true or false"),
        ('{"action": "list", "timeout": 0}', "timeout must be a number of seconds above 0.* got 0"),
        ('{"action": "list", "timeout": -1.5}', "timeout must be"),
        ('{"action": "list", "timeout": "5"}', "timeout must be .* got '5'"),
        ('{"action": "list", "timeout": true}', "timeout must be"),
        ('{"action": "list", "timeout": NaN}', "timeout must be"),
        ('{"action": "list", "timeout": Infinity}', "timeout must be"),
        ('{"action": "merge"}', "merge needs a merge"),
        ('{"action": "merge", "merge": "{"}', "merge is not JSON"),
        ('{"action": "merge", "adapter_id": "a"}', "merge takes no adapter_id"),
        ('{"action": "load", "adapter_id": "a", "merge": {"ids": ["a"]}}', "load takes no merge"),
        ('{"action": "pin", "adapter_id": "a", "adapter_token": "hf_x"}', "takes no adapter_token"),
        ('{"action": "merge", "adapter_token": "hf_x y"}', "adapter_token is no Hub token"),
        (f'{{"action": "list", "timeout": 1{"0" * 400}}}', "timeout must be"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        parse_admin_command(text)
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert len(caught.value.message) < 300
