"""The table of admin actions: what the engine reads is what the table says."""

import dataclasses

import pytest

from multilora.adapters.admin.command import AdminCommand, parse_admin_command
from multilora.errors import RequestError
from multilora_api.admin import ACTIONS, CHANGES, KEYS
from multilora_api.tensors import ADMIN_INPUTS, ENGINE_INPUTS


def test_a_command_has_a_field_for_each_key() -> None:
    fields = [field.name for field in dataclasses.fields(AdminCommand)]
    assert set(fields) == {"action", *KEYS}
    assert [tensor.name for tensor in ADMIN_INPUTS] == ["action", *KEYS]


def test_the_engine_has_an_input_of_its_type_for_each_key() -> None:
    types = {tensor.name: tensor.datatype for tensor in ENGINE_INPUTS}
    assert len(types) == len(ENGINE_INPUTS), "no name stands twice"
    for name, key in KEYS.items():
        assert types[key.tensor or name] == key.datatype


def test_keys_and_changes_are_of_known_actions() -> None:
    assert {action for key in KEYS.values() for action in key.actions} <= set(ACTIONS)
    assert set(CHANGES) <= set(ACTIONS)


def test_a_key_is_refused_by_the_actions_that_do_not_take_it() -> None:
    for action in ACTIONS:
        if action not in KEYS["source"].actions:
            named = {"adapter_id": "a"} if action in KEYS["adapter_id"].actions else {}
            with pytest.raises(RequestError, match="takes no source"):
                parse_admin_command({"action": action, "source": "x", **named})
