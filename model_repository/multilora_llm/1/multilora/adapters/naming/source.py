"""Where adapters come from: ids, folders, Hub repositories, and the LORA_ADAPTERS grammar."""

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from multilora.adapters.naming.names import check_name, is_folder_path, is_hub_id, is_url
from multilora.errors import RequestError, StartupError

_ITEM = re.compile(r"([^=@]+)(?:=([^=@]+))?(?:@([^=@]+))?")
_URL_ITEM = re.compile(r"(?:([^=@:]+)=\s*)?([A-Za-z][A-Za-z0-9+.-]*://.+)")


class Origin(Enum):
    """Why an adapter may be served."""

    REGISTERED = "registered"  # LORA_ADAPTERS or an administrator named it
    DIRECTORY = "directory"  # a folder below --adapters-dir
    ON_DEMAND = "on demand"  # a request named it and --adapter-allow matches
    MERGED = "merged"  # a request asked for a merge of adapters that it may name


@dataclass(frozen=True)
class AdapterSource:
    """`adapter_id` as clients name it; `location` is a folder, a URL or a Hub repository id.

    `token` is the Hub token of the request that named it ("": the server's own); never shown.
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


def parse_lora_adapters(text: str) -> list[AdapterSource]:
    """Read `id`, `id@revision`, `name=/path`, `name=org/repo@revision`, `name=scheme://…`; commas.

    An `id` may be a folder of the adapters directory too: `adapter_folders.localise` decides.
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
