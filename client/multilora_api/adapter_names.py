"""Names of adapters, as clients and operators write them: what they may look like, what they mean.

Law: the text of a request is checked here before anything opens a path or a URL made of it, and
messages show it only in part.
"""

import re
import unicodedata
from urllib.parse import unquote

MAX_LENGTH = 256  # characters
MERGED_PREFIX = "merged:"  # of the ids that merges get
UNPRINTABLE = frozenset(("Cc", "Cs", "Zl", "Zp"))  # control, half of a pair, line separators
_SHOWN_LENGTH = 100
_FOLDER_STARTS = ("/", "./", "../", "~")
URL_START = r"[A-Za-z][A-Za-z0-9+.-]*://"  # a regular expression
_URL = re.compile(URL_START)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def is_folder_path(location: str) -> bool:
    """True for `/path`, `./path`, `../path`, `~/path`, none of which is ever an adapter's name."""
    return location.startswith(_FOLDER_STARTS)


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


def name_problem(text: str) -> str:
    """Why `text` is no relative name, Hub id or plain URL, as the end of a sentence that begins
    with the field's name; "" when it is one."""
    if len(text) > MAX_LENGTH:
        return f"has {len(text)} characters, but may have {MAX_LENGTH}; shorten it"
    if is_folder_path(text):
        return (
            f"{shown(text)} is a path of the server; name a registered adapter, a folder "
            "relative to the adapters directory, a Hub id or a URL"
        )
    # A server may take %2e%2e for .., so that a URL is checked in both forms.
    forms = (text, unquote(text)) if is_url(text) else (text,)
    problems = (find(form) for form in forms for find in (_bad_character, _bad_segment))
    problem = next(filter(None, problems), "")
    return f"{shown(text)}{problem}" if problem else ""


def _bad_character(form: str) -> str:
    if "\\" in form or any(unicodedata.category(char) in UNPRINTABLE for char in form):
        return " holds a backslash or a control character; remove it"
    return ""


def _bad_segment(form: str) -> str:
    if "://" in form and "::" in form:
        return ": chained URLs (::) are not served; give a plain URL"
    # What follows an @ is a revision, which becomes part of a path too.
    parts = _URL.sub("", form).split("/") if is_url(form) else re.split("[/@]", form)
    if any(part in ("", ".", "..") for part in parts):
        return " has an empty part, or one that is . or ..; write the plain name"
    return ""
