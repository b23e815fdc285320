"""What an administrator asks of the adapters: a JSON object, read and checked."""

from dataclasses import dataclass, field

from multilora.adapters.merging.recipe import MergeRecipe, parse_merge
from multilora.adapters.naming.source import hub_token
from multilora.errors import invalid
from multilora.json_fields import json_object
from multilora_api.adapter_names import shown
from multilora_api.admin import ACTIONS, KEYS

_MAX_SECONDS = 1e9  # deadlines are added to clocks: keep them finite
_LONGEST = 4096  # characters, as of paths
_TEXTS = ("adapter_id", "source", "revision")


@dataclass(frozen=True)
class AdminCommand:
    """`source` "" leaves the choice to the catalog; `timeout` (seconds) None to the server.

    `cancel`: an unload ends the running sequences instead of waiting for them. `adapter_token` is
    the Hub token for what must be downloaded; never shown.
    """

    action: str
    adapter_id: str = ""
    source: str = ""
    revision: str = ""
    cancel: bool = False
    timeout: float | None = None
    merge: MergeRecipe | None = None
    adapter_token: str = field(default="", repr=False)


def parse_admin_command(text: str) -> AdminCommand:
    """Read the JSON object; a key that is null or empty counts as not given.

    Raises RequestError (INVALID_ARG).
    """
    given = json_object(text, "admin", 'send for example {"action": "list"}')
    action = given.get("action")
    if not isinstance(action, str) or action not in ACTIONS:
        raise invalid(f"admin: action must be one of {', '.join(ACTIONS)}; got {shown(action)}")
    if unknown := [name for name in given if name not in ("action", *KEYS)]:
        raise invalid(
            f"admin: unknown key {shown(unknown[0])}; the action (one of {', '.join(ACTIONS)}) "
            f"takes {', '.join(KEYS)}"
        )
    command = AdminCommand(
        action,
        *(_text(name, given.get(name)) for name in _TEXTS),
        cancel=_cancel(given.get("cancel")),
        timeout=_timeout(given.get("timeout")),
        merge=parse_merge(given["merge"]) if given.get("merge") else None,
        adapter_token=hub_token(given.get("adapter_token") or ""),
    )
    _check_use(command)
    return command


def _check_use(command: AdminCommand) -> None:
    """Nothing that is given may be without effect."""
    for name, key in KEYS.items():
        if getattr(command, name) and command.action not in key.actions:
            raise invalid(f"admin: {command.action} takes no {name}; leave it out")
    if command.action in KEYS["adapter_id"].actions and not command.adapter_id:
        raise invalid(f"admin: {command.action} needs an adapter_id; name the adapter")
    if command.action == "merge" and not command.merge:
        raise invalid("admin: merge needs a merge, the object that says what to merge")


def _text(name: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise invalid(
            f"admin: {name} must be a string of at most {_LONGEST} characters; got {shown(value)}"
        )
    return value


def _cancel(value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        raise invalid(f"admin: cancel must be true or false; got {shown(value)}")
    return bool(value)


def _timeout(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _MAX_SECONDS:
        return float(value)
    raise invalid(
        f"admin: timeout must be a number of seconds above 0, at most 1e9; got {shown(value)}"
    )
