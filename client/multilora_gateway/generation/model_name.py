"""Which model a request names: the base, or an adapter.

Law: an unknown name never means the base.
"""

import dataclasses
from dataclasses import dataclass

from multilora_api.adapter_names import name_problem
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import invalid, not_found
from multilora_gateway.generation.adapter_selection import AdapterSelection, selected_adapter
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.settings import Settings

# Sent by clients that know no name: TGI's documentation, and huggingface_hub with a base_url.
BASE_ALIASES = ("tgi", "dummy")
BY_MODEL = AdapterSelection()
_SHOWN = 100  # characters of a name in a message


@dataclass(frozen=True)
class ResolvedModel:
    """`name` is what answers call the model. `adapter_id` "" is the base model."""

    name: str
    adapter_id: str


def served_name(settings: Settings, base: ServedModel) -> str:
    return settings.served_model_name or base.model_id


def base_names(settings: Settings, base: ServedModel) -> tuple[str, str]:
    """The names by which clients call the base model."""
    return served_name(settings, base), base.model_id


def named_adapter(model: str, settings: Settings, base: ServedModel) -> str:
    """The adapter that `model` names, "" for the base: its name, or BASE:ADAPTER, or ADAPTER."""
    for name in base_names(settings, base):
        if model == name:
            return ""
        if model.startswith(f"{name}:"):
            return model[len(name) + 1 :]
    return model


async def resolve(
    context: RequestContext, model: str | None, selection: AdapterSelection = BY_MODEL
) -> ResolvedModel:
    """The model that `model` names, unless `selection` names or merges adapters. GatewayError 403
    for an adapter that the caller may not use, 404 for a name that no adapter can have, 422 for a
    name that the base and an adapter share.

    Whether the adapter exists is left to the engine, which says NOT_FOUND.
    """
    base = await context.backend.base()
    if selection.merged is None:
        asked = selection.adapter_id or model or ""
        named = named_adapter(asked, context.settings, base)
        if asked and not named:
            await _check_base_alone(asked, context)
        if not selection.adapter_id:
            named = await _known(named, context)
        selection = dataclasses.replace(selection, adapter_id=named)
    adapter = await selected_adapter(selection, context)
    return ResolvedModel(adapter or served_name(context.settings, base), adapter)


async def _check_base_alone(name: str, context: RequestContext) -> None:
    """GatewayError when a name of the base is an adapter's too: either answer could be wrong."""
    if await context.backend.has_adapter(name):
        raise invalid(
            f"{name!r} is the name of the base model and of an adapter; send '{name}:{name}' for "
            "the adapter, or start the server with another --served-model-name",
            "model",
        )


async def _known(name: str, context: RequestContext) -> str:
    """The adapter that a model's name stands for, when no other field names an adapter."""
    if name in BASE_ALIASES and not await context.backend.has_adapter(name):
        return ""
    if name and name_problem(name):
        # The engine calls such an adapter_id invalid; an OpenAI client that sends the name as its
        # model learns instead that there is no such model.
        context.caller.check(name)
        raise not_found(
            f"there is no model {name[:_SHOWN]!r}; send the base model's name or an adapter's, "
            "as GET /v1/models lists them"
        )
    return name
