"""AdapterSource: an adapter's id, where its files are, and why it may be served; checked names."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from multilora.errors import RequestError, invalid
from multilora_api.adapter_names import is_folder_path, is_url, name_problem, shown
from multilora_api.admin import Origin

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


@dataclass(frozen=True)
class AdapterSource:
    """`adapter_id` as clients name it; `location` is a folder, a URL or a Hub repository id.

    `token` is the Hub token of the request that named the adapter ("": the server's own). No
    message, log line or answer ever shows a token.
    """

    adapter_id: str
    location: str
    revision: str = ""
    origin: Origin = Origin.REGISTERED
    token: str = field(default="", repr=False)

    @property
    def is_folder(self) -> bool:
        return is_folder_path(self.location)

    @property
    def is_url(self) -> bool:
        return is_url(self.location)


@contextlib.contextmanager
def about_adapter(adapter_id: str) -> Iterator[None]:
    """Put the adapter's name before the message of a RequestError raised within.

    Each way to an adapter's files enters this context once, at its top: what reads, checks and
    downloads below need not know the name.
    """
    try:
        yield
    except RequestError as error:
        raise named_error(adapter_id, error) from None


def named_error(adapter_id: str, error: RequestError) -> RequestError:
    """The error with the adapter's name before its message."""
    return RequestError(error.code, f"adapter {shown(adapter_id)}: {error.message}")
