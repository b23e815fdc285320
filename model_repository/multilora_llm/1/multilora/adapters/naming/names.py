"""Names of adapters, as clients and operators write them: what they may look like, what they mean.

Law: text of a request is checked here before anything opens a path or a URL made of it, and is
shown in messages only in part.
"""

import re
import unicodedata
from urllib.parse import unquote

from multilora.errors import invalid

MAX_LENGTH = 256
MERGED_PREFIX = "merged:"  # of the ids that merges get
_SHOWN_LENGTH = 100
_TOKEN = re.compile("[!-~]{1,1024}")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_UNPRINTABLE = frozenset(("Cc", "Cs", "Zl", "Zp"))  # control, half of a pair, line separators


def hub_token(value: object) -> str:
    """A Hub token, or ""; RequestError(INVALID_ARG), which does not show it."""
    if isinstance(value, str) and (not value or _TOKEN.fullmatch(value)):
        return value
    raise invalid("adapter_token is no Hub token; send a string as the Hub shows it")


def is_folder_path(location: str) -> bool:
    """True for `/path`, `./path`, `../path`, `~/path`; such a thing is never an adapter's name."""
    return location.startswith(("/", "./", "../", "~"))


def is_url(location: str) -> bool:
    """True for `scheme://…`, such as `s3://bucket/path`."""
    return _URL.match(location) is not None


def is_hub_id(location: str) -> bool:
    """True for `org/name` and `name`."""
    return _HUB_ID.fullmatch(location) is not None


def split_revision(name: str) -> tuple[str, str]:
    """`org/name@revision` → (`org/name`, `revision`); an `@` in a URL belongs to the URL."""
    if is_url(name):
        return name, ""
    location, _, revision = name.partition("@")
    return location, revision


def shown(text: str) -> str:
    """`text` quoted for a message, cut to a sane length."""
    return repr(text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "…")


def check_name(text: str, field: str = "adapter_id") -> None:
    """RequestError(INVALID_ARG) unless `text` is a relative name, a Hub id or a plain URL."""
    if len(text) > MAX_LENGTH:
        raise invalid(f"{field} has {len(text)} characters, but may have {MAX_LENGTH}; shorten it")
    if is_folder_path(text):
        raise invalid(
            f"{field} {shown(text)} is a path of the server; name a registered adapter, a folder "
            "relative to the adapters directory, a Hub id or a URL"
        )
    # decoded too: a server may take %2e%2e for ..
    for form in (text, unquote(text)) if is_url(text) else (text,):
        _check_characters(form, text, field)
        _check_segments(form, text, field)


def _check_characters(form: str, text: str, field: str) -> None:
    if "\\" in form or any(unicodedata.category(char) in _UNPRINTABLE for char in form):
        raise invalid(f"{field} {shown(text)} holds a backslash or a control character; remove it")


def _check_segments(form: str, text: str, field: str) -> None:
    if "://" in form and "::" in form:
        raise invalid(f"{field} {shown(text)}: chained URLs (::) are not served; give a plain URL")
    # what follows an @ is a revision, which becomes part of a path too
    parts = _URL.sub("", form).split("/") if is_url(form) else re.split("[/@]", form)
    if any(part in ("", ".", "..") for part in parts):
        raise invalid(
            f"{field} {shown(text)} has an empty part, or one that is . or ..; write the plain name"
        )
