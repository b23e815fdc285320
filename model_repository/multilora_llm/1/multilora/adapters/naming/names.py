"""The engine's checks of what requests and operators call adapters."""

import re

from multilora.errors import invalid
from multilora_api.adapter_names import (
    MERGED_PREFIX,
    is_folder_path,
    is_hub_id,
    is_url,
    name_problem,
    shown,
    split_revision,
)

__all__ = [
    "MERGED_PREFIX",
    "check_name",
    "hub_token",
    "is_folder_path",
    "is_hub_id",
    "is_url",
    "shown",
    "split_revision",
]
_TOKEN = re.compile("[!-~]{1,1024}")


def check_name(text: str, field: str = "adapter_id") -> None:
    """RequestError(INVALID_ARG) unless `text` is a relative name, a Hub id or a plain URL."""
    if problem := name_problem(text):
        raise invalid(f"{field} {problem}")


def hub_token(value: object) -> str:
    """A Hub token, or ""; RequestError(INVALID_ARG), which does not show it."""
    if isinstance(value, str) and (not value or _TOKEN.fullmatch(value)):
        return value
    raise invalid("adapter_token is no Hub token; send a string as the Hub shows it")
