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
_URL_START = r"[A-Za-z][A-Za-z0-9+.-]*://"
_URL = re.compile(_URL_START)
_ITEM = re.compile(r"([^=@]+)(?:=([^=@]+))?(?:@([^=@]+))?")
_URL_ITEM = re.compile(rf"(?:([^=@:]+)=\s*)?({_URL_START}.+)")
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


def split_item(item: str) -> tuple[str, str, str] | None:
    """An item of LORA_ADAPTERS → name, location, revision; None when it has none of the forms.

    They are `id`, `id@revision`, `name=/path`, `name=org/repo@revision` and `name=scheme://…`. An
    item without `name=` has its location as its name.
    """
    if url := _URL_ITEM.fullmatch(item):
        return (url[1] or url[2]).strip(), url[2], ""
    match = _ITEM.fullmatch(item)
    if not match:
        return None
    name, location, revision = (part.strip() if part else "" for part in match.groups())
    return name, location or name, revision


def shown(value: object) -> str:
    """`value` quoted for a message, cut to a sane length."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN_LENGTH else value[:_SHOWN_LENGTH] + "…")
    text = repr(value)
    return text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "…"


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
