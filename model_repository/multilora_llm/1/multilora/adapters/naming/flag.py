"""LORA_ADAPTERS: the adapters that the setting names, and which of them are folders here.

Items are separated by commas; `split_item` says which forms they have. An item without `name=` is a
folder of the adapters directory, or else a Hub repository.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from multilora.adapters.files import CONFIG_FILE, name_of
from multilora.adapters.naming.folders import AdapterFolders
from multilora.adapters.naming.source import AdapterSource, check_name
from multilora.errors import RequestError, StartupError
from multilora_api.adapter_names import is_folder_path, is_hub_id, is_url, split_item


def parse_lora_adapters(text: str) -> list[AdapterSource]:
    """Read the setting, without a look at the disk: `localise` finds the folders among the ids.

    Raises StartupError for an item outside the grammar and for a name given twice.
    """
    sources: dict[str, AdapterSource] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        source = _parse_item(item)
        if source.adapter_id in sources:
            raise StartupError(
                f"LORA_ADAPTERS names the adapter {source.adapter_id!r} twice; keep one of them"
            )
        sources[source.adapter_id] = source
    return list(sources.values())


def localise(sources: Iterable[AdapterSource], *directories: AdapterFolders) -> list[AdapterSource]:
    """The sources, where an id that is a folder of one of the directories becomes that folder.

    The first directory that has such a folder wins, and a folder wins over a Hub repository. Raises
    StartupError for an id that is neither.
    """
    return [_localised(source, directories) for source in sources]


def registered(
    text: str, directory: AdapterFolders | None, demo: Path | None
) -> list[AdapterSource]:
    """What the setting names, where a bare name may be a folder of the adapters directory or of the
    demo's; where there is a demo and nothing is named, all of its adapters. Raises StartupError."""
    demo_folders = AdapterFolders(demo) if demo else None
    directories = [folders for folders in (directory, demo_folders) if folders]
    named = localise(parse_lora_adapters(text), *directories)
    return named if named or not demo else sources_in(demo)


def sources_in(folder: Path) -> list[AdapterSource]:
    """One source for each PEFT folder directly below `folder`, named as that folder."""
    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    return [AdapterSource(path.name, str(path)) for path in found]


def _parse_item(item: str) -> AdapterSource:
    split = split_item(item)
    if not split:
        raise StartupError(
            f"Invalid LoRA adapter format: {item}; LORA_ADAPTERS takes id, id@revision, "
            "name=/path, name=org/repo@revision or name=scheme://..., separated by commas"
        )
    name, location, revision = split
    with contextlib.suppress(ValueError):  # else the name is refused below
        name = name_of(name)  # as clients write it: variables of the environment come as paths do
    if is_folder_path(name):
        raise StartupError(f"LORA_ADAPTERS item {item} needs a name: write name={item}")
    known = is_folder_path(location) or is_url(location) or is_hub_id(location)
    if location != split[0] and not known:
        raise StartupError(
            f"LORA_ADAPTERS item {item}: {location!r} is neither a Hub id (org/name) nor a URL nor "
            "a folder (start it with / or ./)"
        )
    return _checked(item, AdapterSource(name, location, revision))


def _checked(item: str, source: AdapterSource) -> AdapterSource:
    try:
        check_name(source.adapter_id, "the name")
    except RequestError as error:
        raise StartupError(f"LORA_ADAPTERS item {item}: {error.message}") from None
    return source


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
