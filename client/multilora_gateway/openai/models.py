"""/v1/models: the base model and its adapters, as OpenAI and vLLM list them."""

import time
from collections.abc import Mapping
from typing import Any

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.served_model import BaseModel
from multilora_gateway.generation.model_name import base_names, resolve, served_name
from multilora_gateway.http.access import Caller
from multilora_gateway.settings import Settings

_OWNER = "multilora"
_CREATED = int(time.time())  # of everything: nothing else is known


async def models(backend: Backend, settings: Settings, caller: Caller) -> dict[str, Any]:
    """The base, then the adapters that the caller may use."""
    base = await backend.base()
    entries = (await backend.adapters("list"))["adapters"]
    adapters = [_adapter(entry, base, settings) for entry in entries if caller.may_use(entry["id"])]
    return {"object": "list", "data": [_base(base, settings), *adapters]}


async def model(backend: Backend, settings: Settings, caller: Caller, name: str) -> dict[str, Any]:
    """One of them; GatewayError 404."""
    base = await backend.base()
    target = await resolve(backend, settings, caller, name)
    if not target.adapter_id:
        return _base(base, settings)
    entry = await backend.adapters("info", adapter_id=target.adapter_id)
    return _adapter(entry, base, settings)


def _base(base: BaseModel, settings: Settings) -> dict[str, Any]:
    return _model(served_name(settings, base), base.model_id, None, base)


def _adapter(entry: Mapping[str, Any], base: BaseModel, settings: Settings) -> dict[str, Any]:
    """An adapter that is called as the base is listed as what clients have to send."""
    name = entry["id"]
    shown = f"{name}:{name}" if name in base_names(settings, base) else name
    return _model(shown, entry.get("source") or name, served_name(settings, base), base)


def _model(name: str, root: str, parent: str | None, base: BaseModel) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": _CREATED,
        "owned_by": _OWNER,
        "root": root,
        "parent": parent,
        "max_model_len": base.max_total_tokens,
    }
