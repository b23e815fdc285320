"""Which model a request names: the base, or an adapter. Nothing unknown becomes the base."""

from dataclasses import dataclass

from multilora_gateway.access import Caller
from multilora_gateway.backend import Backend
from multilora_gateway.base_model import BaseModel
from multilora_gateway.errors import GatewayError
from multilora_gateway.settings import Settings

# What clients send that know no name: TGI's documentation, and huggingface_hub with a base_url.
BASE_ALIASES = ("tgi", "dummy")


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
    adapter_id: str | None = None,
) -> Target:
    """GatewayError 403 for an adapter that the caller may not use.

    Whether the adapter exists is left to the engine, which says NOT_FOUND.
    """
    base = await backend.base()
    adapter = adapter_id or named_adapter(model or "", settings, base)
    if not adapter_id and adapter in BASE_ALIASES and not await _is_adapter(backend, adapter):
        adapter = ""
    caller.check(adapter)
    return Target(adapter or served_name(settings, base), adapter)


async def _is_adapter(backend: Backend, name: str) -> bool:
    try:
        await backend.adapters("info", adapter_id=name)
    except GatewayError as error:
        if error.status == 404:
            return False
        raise
    return True
