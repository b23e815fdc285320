"""LORA_ADAPTERS: the grammar of the setting, and which of its names are folders of this machine.

The grammar is `id`, `id@revision`, `name=/path`, `name=org/repo@revision` and `name=scheme://…`,
separated by commas. An `id` is a folder of the adapters directory, or else a Hub repository.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from multilora.adapters.files import CONFIG_FILE
from multilora.adapters.naming.folders import AdapterFolders
from multilora.adapters.naming.source import AdapterSource, check_name
from multilora.errors import RequestError, StartupError
from multilora_api.adapter_names import URL_START, is_folder_path, is_hub_id

_ITEM = re.compile(r"([^=@]+)(?:=([^=@]+))?(?:@([^=@]+))?")
_URL_ITEM = re.compile(rf"(?:([^=@:]+)=\s*)?({URL_START}.+)")


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


def sources_in(folder: Path) -> list[AdapterSource]:
    """One source for each PEFT folder directly below `folder`, named as that folder."""
    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    return [AdapterSource(path.name, str(path)) for path in found]


def _parse_item(item: str) -> AdapterSource:
    if url := _URL_ITEM.fullmatch(item):
        return _checked(item, AdapterSource((url[1] or url[2]).strip(), url[2]))
    match = _ITEM.fullmatch(item)
    if not match:
        raise StartupError(
            f"Invalid LoRA adapter format: {item}; LORA_ADAPTERS takes id, id@revision, "
            "name=/path, name=org/repo@revision or name=scheme://..., separated by commas"
        )
    name, location, revision = (part.strip() if part else "" for part in match.groups())
    if not location and is_folder_path(name):
        raise StartupError(f"LORA_ADAPTERS item {item} needs a name: write name={item}")
    if location and not is_folder_path(location) and not is_hub_id(location):
        raise StartupError(
            f"LORA_ADAPTERS item {item}: {location!r} is neither a Hub id (org/name) nor a URL nor "
            "a folder (start it with / or ./)"
        )
    return _checked(item, AdapterSource(name, location or name, revision))


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
