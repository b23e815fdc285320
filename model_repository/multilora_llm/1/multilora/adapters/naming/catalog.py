"""Which adapters may be served: adapter id → AdapterSource, without opening any adapter's files.

Laws: registered adapters come first, then the folders of the adapters directory as they are now,
then what --adapter-allow lets a request load. Any other id is refused with a message that says what
would make the id work. A refusal is cheap and leaves nothing behind, so that any number of mistyped
names costs the server nothing.
"""

import bisect
import difflib
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from multilora.adapters.files import path_of
from multilora.adapters.naming.allow import AllowList
from multilora.adapters.naming.folders import AdapterFolders
from multilora.adapters.naming.source import AdapterSource, check_name
from multilora.errors import ErrorCode, RequestError, invalid
from multilora_api.adapter_names import (
    MERGED_PREFIX,
    is_folder_path,
    is_hub_id,
    is_url,
    shown,
    split_revision,
)
from multilora_api.admin import MOST_LISTED, Origin

_HINTS = 2  # similar names in a refusal, at most
_NEIGHBOURS = 8  # names that are compared on each side, in alphabetical order
_LONGEST_COMPARED = 64  # characters


class Listing(NamedTuple):
    """Some of the adapters. `next` is what the rest comes after, "" when there is none."""

    sources: list[AdapterSource]
    next: str


class AdapterCatalog:
    """Used from any thread. `folders` is the adapters directory if there is one, `allow` the
    patterns of --adapter-allow."""

    def __init__(
        self,
        registered: Iterable[AdapterSource],
        folders: AdapterFolders | None,
        allow: Iterable[str],
    ) -> None:
        self._folders = folders
        self._allow = AllowList(allow)
        self._lock = threading.Lock()
        # The dict is exchanged and never changed, so that readers need no lock.
        self._registered = {source.adapter_id: source for source in registered}
        # Those of LORA_ADAPTERS, which an administrator may unload and load again.
        self._configured = self._registered
        self._names = tuple(sorted(self._registered))

    def resolve(self, adapter_id: str, token: str = "") -> AdapterSource:
        """Where the adapter comes from; `token` is the Hub token for a download, "" the server's.

        RequestError: INVALID_ARG for an id that no adapter can have, NOT_FOUND for an adapter that
        is neither registered nor in the adapters directory nor allowed.
        """
        source = self._resolve(adapter_id)
        return source if not token or source.is_folder else replace(source, token=token)

    def _resolve(self, adapter_id: str) -> AdapterSource:
        if source := self._registered.get(adapter_id):
            return source
        check_name(adapter_id)
        if self._folders and (source := self._folders.find(adapter_id)):
            return source
        location, revision = split_revision(adapter_id)
        if self._allow.matches(location):
            return AdapterSource(adapter_id, location, revision, Origin.ON_DEMAND)
        raise RequestError(ErrorCode.NOT_FOUND, self._refusal(adapter_id, location))

    def source(self, adapter_id: str, location: str, revision: str) -> AdapterSource:
        """What an administrator may load as `adapter_id`.

        `location` "" stands for what a request with this id gets. Otherwise it is an id as
        `resolve` takes it, the location of a registered adapter or of one of LORA_ADAPTERS, or a
        folder that is below the adapters directory or matches --adapter-allow. RequestError as
        `resolve`.
        """
        if location:
            if adapter_id not in self._configured:
                check_name(adapter_id)
            source = self._elsewhere(adapter_id, location)
        else:
            source = self._unloaded(adapter_id) or self.resolve(adapter_id)
        return _at_revision(source, revision) if revision else source

    def register(self, source: AdapterSource) -> None:
        """Serve the source under its id from now on, in place of another source with that id."""
        with self._lock:
            self._exchange({**self._registered, source.adapter_id: source})

    def unregister(self, adapter_id: str) -> bool:
        """→ whether the adapter was registered.

        Its id may still name a folder of the adapters directory, or match --adapter-allow.
        """
        with self._lock:
            rest = dict(self._registered)
            was_registered = rest.pop(adapter_id, None) is not None
            self._exchange(rest)
        return was_registered

    def listed(self, after: str = "") -> Listing:
        """The registered adapters, and the first MOST_LISTED of the adapters directory in order of
        their names; with `after` those of the directory alone whose names come after it."""
        registered = self._registered
        sources = [] if after else list(registered.values())
        if self._folders is None:
            return Listing(sources, "")
        names = self._folders.names()
        first = bisect.bisect_right(names, after)
        page = names[first : first + MOST_LISTED]
        location = self._folders.location
        sources += [
            AdapterSource(name, location(name), origin=Origin.DIRECTORY)
            for name in page
            if name not in registered
        ]
        return Listing(sources, page[-1] if first + len(page) < len(names) else "")

    @property
    def registered(self) -> list[AdapterSource]:
        return list(self._registered.values())

    @property
    def num_known(self) -> int:
        """How many are registered or were in the adapters directory at the latest scan."""
        return len(self._registered) + (len(self._folders.known) if self._folders else 0)

    def _exchange(self, registered: dict[str, AdapterSource]) -> None:
        self._registered = registered
        self._names = tuple(sorted(registered))

    def _unloaded(self, adapter_id: str) -> AdapterSource | None:
        """The source in LORA_ADAPTERS of an adapter that an administrator has unloaded."""
        return None if adapter_id in self._registered else self._configured.get(adapter_id)

    def _elsewhere(self, adapter_id: str, location: str) -> AdapterSource:
        if is_folder_path(location):
            return AdapterSource(adapter_id, self._allowed_folder(location))
        place, revision = split_revision(location)
        if any(source.location == place for source in self._named()):
            return AdapterSource(adapter_id, place, revision)
        try:
            found = self.resolve(location)
        except RequestError as error:
            raise RequestError(error.code, f"source: {error.message}") from None
        return AdapterSource(adapter_id, found.location, found.revision)

    def _named(self) -> list[AdapterSource]:
        """The sources that LORA_ADAPTERS or an administrator has named."""
        return [*self._configured.values(), *self._registered.values()]

    def _allowed_folder(self, location: str) -> str:
        """The folder with its symlinks resolved, so that the folder checked is the one read."""
        try:
            path = os.path.realpath(os.path.expanduser(path_of(location)))
        except ValueError:  # a zero byte, or half of a surrogate pair
            message = f"source {shown(location)} holds a control character; remove it"
            raise invalid(message) from None
        registered = (
            os.path.expanduser(source.location) for source in self._named() if source.is_folder
        )
        if (
            (self._folders and self._folders.contains(path))
            or self._allow.matches_folder(path)
            or path in map(os.path.realpath, registered)
        ):
            return path
        raise invalid(
            f"source {shown(location)} is outside the folders that adapters may be loaded from: it "
            "must be below --adapters-dir, be in LORA_ADAPTERS or match --adapter-allow '/path/*'"
        )

    def _refusal(self, adapter_id: str, location: str) -> str:
        """Why the adapter is not served, and what would change that."""
        if adapter_id.startswith(MERGED_PREFIX):
            return f"adapter {shown(adapter_id)} is not there any more; ask for the merge again"
        if adapter_id in self._configured:
            return f"adapter {shown(adapter_id)} has been unloaded; load it again or name another"
        known = self._folders.known if self._folders else ()
        similar = _resembling(adapter_id, self._names, known)
        guess = f"; did you mean {' or '.join(map(repr, similar))}?" if similar else ""
        if is_url(location) or (is_hub_id(location) and "/" in location):
            pattern = shown(location.rpartition("/")[0] + "/*")
            return (
                f"adapter {shown(adapter_id)} is not registered, and requests may not load it by "
                f"themselves{guess}; start the server with --adapter-allow {pattern} to let them, "
                "or name it in LORA_ADAPTERS"
            )
        return (
            f"adapter {shown(adapter_id)} is not known{guess}; name it in LORA_ADAPTERS "
            "(name=/path or name=org/repo), or put its folder below --adapters-dir"
        )


def _resembling(name: str, *sorted_names: Sequence[str]) -> list[str]:
    """At most _HINTS of the names, the most similar first.

    Only names that stand near `name` in alphabetical order are compared, so that the time does not
    grow with the number of names.
    """
    if len(name) > _LONGEST_COMPARED:
        return []
    candidates: list[str] = []
    for names in sorted_names:
        place = bisect.bisect(names, name)
        near = names[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS]
        candidates += [other for other in near if len(other) <= _LONGEST_COMPARED]
    others = dict.fromkeys(other for other in candidates if other != name)  # it may just have gone
    return difflib.get_close_matches(name, others, n=_HINTS, cutoff=0.7)


def _at_revision(source: AdapterSource, revision: str) -> AdapterSource:
    check_name(revision, "revision")
    if source.is_folder or source.is_url:
        raise invalid(
            f"revision {shown(revision)} is given, but {shown(source.location)} is no Hub "
            "repository; leave it out"
        )
    return replace(source, revision=revision)
