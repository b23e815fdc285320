"""Which adapters there are: adapter id → AdapterSource, by policy alone, without reading any files.

Laws: registered adapters come first, then the folders of the adapters directory as they are now,
then what --adapter-allow lets a request load; anything else is refused with what would make it
work. A refusal is cheap and leaves nothing behind, however many there are.
"""

import os
import threading
from collections.abc import Iterable
from dataclasses import replace

from multilora.adapters.naming.allow import AllowList
from multilora.adapters.naming.folders import AdapterFolders
from multilora.adapters.naming.hints import resembling
from multilora.adapters.naming.names import (
    MERGED_PREFIX,
    check_name,
    is_folder_path,
    is_hub_id,
    is_url,
    shown,
    split_revision,
)
from multilora.adapters.naming.source import AdapterSource, Origin
from multilora.errors import ErrorCode, RequestError, StartupError, invalid


class AdapterCatalog:
    """Used from any thread. `folders` is the adapters directory, `allow` the patterns of
    --adapter-allow."""

    def __init__(
        self,
        registered: Iterable[AdapterSource],
        folders: AdapterFolders | None,
        allow: Iterable[str],
    ) -> None:
        self._folders = folders
        self._allow = AllowList(allow)
        self._lock = threading.Lock()
        # Never changed, only exchanged, so that readers need no lock.
        self._registered = {source.adapter_id: source for source in registered}
        self._configured = self._registered  # at start; an administrator may load them again
        self._names = tuple(sorted(self._registered))

    def resolve(self, adapter_id: str, token: str = "") -> AdapterSource:
        """Where that adapter comes from; `token` downloads it if that should be necessary.

        RequestError: INVALID_ARG for a name that can never be one, NOT_FOUND for one that is not
        registered, not in the adapters directory and not allowed.
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
        """What an administrator may load as `adapter_id`; `location` "" is what requests get.

        `location` is whatever `resolve` takes, the location of an adapter of LORA_ADAPTERS or of
        one that is registered, or a folder below the adapters directory or that --adapter-allow
        matches. RequestError as `resolve`.
        """
        if location:
            if adapter_id not in self._configured:
                check_name(adapter_id)
            source = self._elsewhere(adapter_id, location)
        else:
            source = self._withdrawn(adapter_id) or self.resolve(adapter_id)
        return _at_revision(source, revision) if revision else source

    def register(self, source: AdapterSource) -> None:
        """Make it known under its id from now on, in place of what had that id."""
        with self._lock:
            self._exchange({**self._registered, source.adapter_id: source})

    def unregister(self, adapter_id: str) -> bool:
        """Whether it was registered. It may still be found in the directory, or be allowed."""
        with self._lock:
            rest = dict(self._registered)
            was_registered = rest.pop(adapter_id, None) is not None
            self._exchange(rest)
        return was_registered

    def sources(self) -> list[AdapterSource]:
        """The registered ones, then those in the directory; reads the whole directory."""
        registered = self._registered
        sources = list(registered.values())
        if self._folders:
            location = self._folders.location
            sources += [
                AdapterSource(name, location(name), origin=Origin.DIRECTORY)
                for name in sorted(self._folders.scan())
                if name not in registered
            ]
        return sources

    @property
    def registered(self) -> list[AdapterSource]:
        return list(self._registered.values())

    @property
    def num_known(self) -> int:
        """Registered, and in the directory when it was last read."""
        return len(self._registered) + (len(self._folders.known) if self._folders else 0)

    def _exchange(self, registered: dict[str, AdapterSource]) -> None:
        self._registered = registered
        self._names = tuple(sorted(registered))

    def _withdrawn(self, adapter_id: str) -> AdapterSource | None:
        """What LORA_ADAPTERS says of an adapter that an administrator has unloaded."""
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
        """What the operator or an administrator has named."""
        return [*self._configured.values(), *self._registered.values()]

    def _allowed_folder(self, location: str) -> str:
        """The folder without symlinks, so that what was checked is what will be read."""
        if "\0" in location:
            raise invalid(f"source {shown(location)} holds a control character; remove it")
        path = os.path.realpath(os.path.expanduser(location))
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
        """What would make it work."""
        if adapter_id.startswith(MERGED_PREFIX):
            return f"adapter {shown(adapter_id)} is not there any more; ask for the merge again"
        if adapter_id in self._configured:
            return f"adapter {shown(adapter_id)} has been unloaded; load it again or name another"
        known = self._folders.known if self._folders else ()
        similar = resembling(adapter_id, self._names, known)
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


def localise(sources: Iterable[AdapterSource], *directories: AdapterFolders) -> list[AdapterSource]:
    """LORA_ADAPTERS with those that name a folder of a directory turned to that folder.

    The first directory that has it wins, and a folder wins over a Hub id. Raises StartupError for
    a bare name that is neither.
    """
    return [_localised(source, directories) for source in sources]


def _localised(source: AdapterSource, directories: Iterable[AdapterFolders]) -> AdapterSource:
    if source.is_folder or source.is_url:
        return source
    name = f"{source.location}@{source.revision}" if source.revision else source.location
    for folders in directories:
        try:
            found = folders.find(name)
        except RequestError as error:
            raise StartupError(f"LORA_ADAPTERS: {error.message}") from None
        if found:
            return replace(source, location=found.location, revision="")
    if not is_hub_id(source.location):
        raise StartupError(
            f"LORA_ADAPTERS: {source.location!r} is neither a Hub id (org/name) nor a folder below "
            "the adapters directory (--adapters-dir); write name=/path for another folder"
        )
    return source


def _at_revision(source: AdapterSource, revision: str) -> AdapterSource:
    check_name(revision, "revision")
    if source.is_folder or source.is_url:
        raise invalid(
            f"revision {shown(revision)} is given, but {shown(source.location)} is no Hub "
            "repository; leave it out"
        )
    return replace(source, revision=revision)
