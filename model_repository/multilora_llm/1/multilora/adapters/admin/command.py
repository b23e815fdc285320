"""What an administrator asks of the adapters: an action with its keys, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from multilora.adapters.merging.recipe import MergeRecipe, parse_merge
from multilora.adapters.naming.source import hub_token
from multilora.errors import invalid
from multilora_api.adapter_names import shown
from multilora_api.admin import ACTIONS, KEYS

_MAX_SECONDS = 1e9  # deadlines are added to clocks: keep them finite
_LONGEST = 4096  # characters, as of paths
_TEXTS = ("adapter_id", "source", "revision", "after")


@dataclass(frozen=True)
class AdminCommand:
    """`source` "" leaves the choice to the catalog; `timeout` (seconds) None to the server. `after`
    is what an earlier list named as `next`.

    `cancel`: an unload ends the running sequences instead of waiting for them. `adapter_token` is
    the Hub token for what must be downloaded, `admin_key` opens a server that has one; neither is
    ever shown.
    """

    action: str
    adapter_id: str = ""
    source: str = ""
    revision: str = ""
    after: str = ""
    cancel: bool = False
    timeout: float | None = None
    merge: MergeRecipe | None = None
    adapter_token: str = field(default="", repr=False)
    admin_key: str = field(default="", repr=False)


def parse_admin_command(given: Mapping[str, Any]) -> AdminCommand:
    """Check an action and its KEYS, each of the key's type; a key that is empty counts as not
    given. Raises RequestError (INVALID_ARG).
    """
    action = given.get("action")
    if action not in ACTIONS:
        raise invalid(f"action must be one of {', '.join(ACTIONS)}; got {shown(action)}")
    command = AdminCommand(
        action,
        *(_text(name, given.get(name, "")) for name in _TEXTS),
        cancel=given.get("cancel", False),
        timeout=_timeout(given.get("timeout")),
        merge=parse_merge(given["merge"]) if given.get("merge") else None,
        adapter_token=hub_token(given.get("adapter_token", "")),
        admin_key=given.get("admin_key", ""),
    )
    _check_use(command)
    return command


def _check_use(command: AdminCommand) -> None:
    """Nothing that is given may be without effect."""
    for name, key in KEYS.items():
        if getattr(command, name) and command.action not in key.actions:
            raise invalid(f"{command.action} takes no {name}; leave it out")
    if command.action in KEYS["adapter_id"].actions and not command.adapter_id:
        raise invalid(f"{command.action} needs an adapter_id; name the adapter")
    if command.action == "merge" and not command.merge:
        raise invalid("merge needs a merge, the object that says what to merge")


def _text(name: str, value: str) -> str:
    if len(value) > _LONGEST:
        raise invalid(f"{name} must have at most {_LONGEST} characters; got {shown(value)}")
    return value


def _timeout(value: float | None) -> float | None:
    if value is None or 0 < value <= _MAX_SECONDS:
        return value
    raise invalid(f"timeout must be a number of seconds above 0, at most 1e9; got {value!r}")
