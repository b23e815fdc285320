"""Which model a request names: the base, or an adapter. Nothing unknown becomes the base."""

import dataclasses
import re
import unicodedata
from dataclasses import dataclass

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.served_model import BaseModel
from multilora_gateway.errors import invalid, not_found
from multilora_gateway.generation.adapter_selection import AdapterWish, wanted_adapter
from multilora_gateway.http.access import Caller
from multilora_gateway.settings import Settings

# What clients send that know no name: TGI's documentation, and huggingface_hub with a base_url.
BASE_ALIASES = ("tgi", "dummy")
BY_MODEL = AdapterWish()
_LONGEST = 256  # characters of an adapter's name
_SHOWN = 100  # of them in a message
_PATHS = ("/", "./", "../", "~")
_UNPRINTABLE = ("Cc", "Zl", "Zp")


@dataclass(frozen=True)
class Target:
    """`name` is what answers call it. `adapter_id` "" is the base model."""

    name: str
    adapter_id: str


def served_name(settings: Settings, base: BaseModel) -> str:
    return settings.served_model_name or base.model_id


def base_names(settings: Settings, base: BaseModel) -> tuple[str, str]:
    """What the base model is called by clients."""
    return served_name(settings, base), base.model_id


def named_adapter(model: str, settings: Settings, base: BaseModel) -> str:
    """The adapter that `model` names, "" for the base: its name, or BASE:ADAPTER, or ADAPTER."""
    for name in base_names(settings, base):
        if model == name:
            return ""
        if model.startswith(f"{name}:"):
            return model[len(name) + 1 :]
    return model


async def resolve(
    backend: Backend,
    settings: Settings,
    caller: Caller,
    model: str | None,
    wish: AdapterWish = BY_MODEL,
) -> Target:
    """What `model` names, unless `wish` names or merges adapters. GatewayError 403 for an adapter
    that the caller may not use, 404 for what no adapter can be called, 422 for a name that the base
    and an adapter share.

    Whether the adapter exists is left to the engine, which says NOT_FOUND.
    """
    base = await backend.base()
    if wish.merged is None:
        asked = wish.adapter_id or model or ""
        named = named_adapter(asked, settings, base)
        if asked and not named:
            await _check_base_alone(asked, backend)
        if not wish.adapter_id:
            named = await _known(named, caller, backend)
        wish = dataclasses.replace(wish, adapter_id=named)
    adapter = await wanted_adapter(wish, caller, backend)
    return Target(adapter or served_name(settings, base), adapter)


async def _check_base_alone(name: str, backend: Backend) -> None:
    """GatewayError for a name of the base that is an adapter's too: nobody may answer for it."""
    if await backend.has_adapter(name):
        raise invalid(
            f"{name!r} is the name of the base model and of an adapter; send '{name}:{name}' for "
            "the adapter, or start the server with another --served-model-name",
            "model",
        )


async def _known(name: str, caller: Caller, backend: Backend) -> str:
    """What a model's name stands for, when nothing else names the adapter."""
    if name in BASE_ALIASES and not await backend.has_adapter(name):
        return ""
    if name and _is_no_name(name):
        caller.check(name)
        raise not_found(
            f"there is no model {name[:_SHOWN]!r}; send the base model's name or an adapter's, "
            "as GET /v1/models lists them"
        )
    return name


def _is_no_name(name: str) -> bool:
    """Whether no adapter can be called that: the engine finds such an adapter_id invalid, but an
    OpenAI client that sends it as the model is told that there is no such model."""
    parts = () if "://" in name else re.split("[/@]", name)
    return (
        len(name) > _LONGEST
        or name.startswith(_PATHS)
        or any(part in ("", ".", "..") for part in parts)
        or any(char == "\\" or unicodedata.category(char) in _UNPRINTABLE for char in name)
    )
