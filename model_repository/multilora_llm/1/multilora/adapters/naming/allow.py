"""--adapter-allow: patterns of the locations from which requests may load adapters by themselves.

Laws: nothing is allowed by default. A pattern allows locations of its own kind only: `org/*` and
`*` allow Hub ids, `s3://bucket/*` allows URLs, and `/models/*` folders, with symlinks resolved.
"""

import fnmatch
import os
import re
from collections.abc import Iterable

from multilora.errors import StartupError
from multilora_api.adapter_names import is_folder_path, is_hub_id, is_url

_WILDCARD = re.compile(r"[*?[]")
_FILE_SCHEMES = ("file:", "local:")  # URLs of folders, which only a pattern of a folder may allow


class AllowList:
    """`patterns` are those of fnmatch, case-sensitive, where `*` matches `/` too; or one string of
    patterns separated by commas. Raises StartupError for a pattern that could never match."""

    def __init__(self, patterns: Iterable[str]) -> None:
        text = patterns if isinstance(patterns, str) else ",".join(patterns)
        stripped = [pattern for part in text.split(",") if (pattern := part.strip())]
        self._folders = [pattern for pattern in stripped if is_folder_path(pattern)]
        others = [pattern for pattern in stripped if not is_folder_path(pattern)]
        for pattern in others:
            if "@" in pattern and "://" not in pattern:
                raise StartupError(
                    f"adapter_allow pattern {pattern!r} names a revision; a pattern is about any "
                    "revision, so leave out what follows the @"
                )
        self._urls = _compiled(pattern for pattern in others if "://" in pattern)
        self._hub_ids = _compiled(pattern for pattern in others if "://" not in pattern)

    def matches(self, location: str) -> bool:
        """Whether a Hub id (without revision) or a URL, as `check_name` passes it, is allowed."""
        if is_url(location):
            is_local = location.lower().startswith(_FILE_SCHEMES)
            return not is_local and _any(self._urls, location)
        return is_hub_id(location) and _any(self._hub_ids, location)

    def matches_folder(self, path: str) -> bool:
        """Whether a folder, absolute and without symlinks, is allowed."""
        # Resolved at each call, because a symlink in the pattern may be changed while serving.
        return _any(_compiled(map(_without_symlinks, self._folders)), path)


def _compiled(patterns: Iterable[str]) -> list[re.Pattern[str]]:
    return [re.compile(fnmatch.translate(pattern)) for pattern in patterns]


def _any(patterns: list[re.Pattern[str]], text: str) -> bool:
    return any(pattern.match(text) for pattern in patterns)


def _without_symlinks(pattern: str) -> str:
    """The pattern with its folders before the first wildcard resolved."""
    wildcard = _WILDCARD.search(pattern)
    if not wildcard:
        return os.path.realpath(os.path.expanduser(pattern))
    folder, _, rest = pattern[: wildcard.start()].rpartition("/")
    folder = os.path.realpath(os.path.expanduser(folder or "/"))
    return os.path.join(folder, rest + pattern[wildcard.start() :])
