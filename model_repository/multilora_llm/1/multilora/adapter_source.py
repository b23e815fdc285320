"""Where adapters come from: ids, folders, Hub repositories, and the LORA_ADAPTERS grammar."""

import re
from dataclasses import dataclass
from pathlib import Path

from multilora.errors import StartupError

_ITEM = re.compile(r"([^=@]+)(?:=([^=@]+))?(?:@([^=@]+))?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class AdapterSource:
    """`adapter_id` as clients name it; `location` is a folder or a Hub repository id."""

    adapter_id: str
    location: str
    revision: str = ""

    @property
    def is_folder(self) -> bool:
        return is_folder_path(self.location)


def is_folder_path(location: str) -> bool:
    """True for `/path`, `./path`, `../path`, `~/path`; anything else is a Hub repository id."""
    return location.startswith(("/", "./", "../", "~"))


def parse_lora_adapters(text: str) -> list[AdapterSource]:
    """Read `id`, `id@revision`, `name=/path`, `name=org/repo@revision`, separated by commas.

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


def sources_in(folder: Path) -> list[AdapterSource]:
    """One source for each PEFT folder directly below `folder`, named as that folder."""
    found = sorted(path.parent for path in folder.glob("*/adapter_config.json"))
    return [AdapterSource(path.name, str(path)) for path in found]


def _parse_item(item: str) -> AdapterSource:
    match = _ITEM.fullmatch(item)
    if not match:
        raise StartupError(
            f"Invalid LoRA adapter format: {item}; LORA_ADAPTERS takes id, id@revision, "
            "name=/path or name=org/repo@revision, separated by commas"
        )
    name, location, revision = (part.strip() if part else "" for part in match.groups())
    if not location and is_folder_path(name):
        raise StartupError(f"LORA_ADAPTERS item {item} needs a name: write name={item}")
    location = location or name
    if not is_folder_path(location) and not _HUB_ID.fullmatch(location):
        raise StartupError(
            f"LORA_ADAPTERS item {item}: {location!r} is neither a Hub id (org/name) nor a folder "
            "(start it with / or ./)"
        )
    return AdapterSource(name, location, revision)
