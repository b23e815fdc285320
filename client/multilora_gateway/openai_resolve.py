"""Which model a request names: the base, or an adapter. Nothing unknown becomes the base."""

import dataclasses
from dataclasses import dataclass

from multilora_gateway.access import Caller
from multilora_gateway.backend import Backend
from multilora_gateway.base_model import BaseModel
from multilora_gateway.errors import GatewayError
from multilora_gateway.lorax_adapter import AdapterWish, wanted_adapter
from multilora_gateway.settings import Settings

# What clients send that know no name: TGI's documentation, and huggingface_hub with a base_url.
BASE_ALIASES = ("tgi", "dummy")
BY_MODEL = AdapterWish()


@dataclass(frozen=True)
class Target:
    """`name` is what answers call it. `adapter_id` "" is the base model."""

    name: str
    adapter_id: str


def served_name(settings: Settings, base: BaseModel) -> str:
    return settings.served_model_name or base.model_id


def named_adapter(model: str, settings: Settings, base: BaseModel) -> str:
    """The adapter that `model` names, "" for the base: its name, or BASE:ADAPTER, or ADAPTER."""
    for name in (served_name(settings, base), base.model_id):
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
    """What `model` names, unless `wish` does. GatewayError 403 for an adapter that the caller may
    not use.

    Whether the adapter exists is left to the engine, which says NOT_FOUND.
    """
    base = await backend.base()
    if not wish.adapter_id:
        named = named_adapter(model or "", settings, base)
        if named in BASE_ALIASES and not await _is_adapter(backend, named):
            named = ""
        wish = dataclasses.replace(wish, adapter_id=named)
    adapter = await wanted_adapter(wish, caller, backend)
    return Target(adapter or served_name(settings, base), adapter)


async def _is_adapter(backend: Backend, name: str) -> bool:
    try:
        await backend.adapters("info", adapter_id=name)
    except GatewayError as error:
        if error.status == 404:
            return False
        raise
    return True
