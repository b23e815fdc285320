"""Which adapter a request selects: by its name, by LoRAX's source, or several merged into one."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from multilora_api.adapter_names import is_folder_path, is_url
from multilora_api.admin import MergeStrategy, SignMethod
from multilora_gateway.errors import invalid
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.http.json_values import Fields, Items, Name, Text, only

BASE_MODEL = "__base_model__"  # LoRAX's name of the base model, where an adapter's name stands
_ElsewhereAdapter = Annotated[Any, only(instead="name the adapter in adapter_id")]
OTHER_NAMES = ("lora", "lora_name", "lora_path", "lora_request")  # of an adapter, elsewhere
LoraxSource = Literal["hub", "local", "s3", "pbase"]


class AdapterMerge(Fields):
    """Several adapters as one."""

    ids: Items[Name] = Field(min_length=1)
    weights: Items[float] = Field(min_length=1)
    merge_strategy: MergeStrategy | None = None
    density: float | None = Field(default=None, ge=0, le=1)
    majority_sign_method: SignMethod | None = None


@dataclass(frozen=True)
class AdapterSelection:
    """What a request says about its adapter. `token` opens private Hub repositories."""

    adapter_id: str = ""
    source: LoraxSource | None = None
    token: str = ""
    merged: AdapterMerge | None = None

    def check(self) -> None:
        """Raises GatewayError for fields that contradict each other or are not supported."""
        merged = self.merged
        if merged is not None and self.adapter_id:
            raise invalid("you must specify at most one of `adapter_id` or `merged_adapters`")
        if merged is not None and len(merged.ids) != len(merged.weights):
            raise invalid("`ids` and `weights` must have the same length")
        if self.source == "pbase":
            raise invalid(
                "`adapter_source` pbase is not supported: use hub, local or s3, or the name under "
                "which the server knows the adapter"
            )


class AdapterFields(BaseModel):
    """The fields about an adapter, of both APIs. None is the same as absent."""

    adapter_id: Name | None = None
    adapter_source: LoraxSource | None = None
    api_token: Text | None = Field(default=None, repr=False)
    merged_adapters: AdapterMerge | None = None
    # OTHER_NAMES: to ignore one would answer with the base model.
    lora: _ElsewhereAdapter = None
    lora_name: _ElsewhereAdapter = None
    lora_path: _ElsewhereAdapter = None
    lora_request: _ElsewhereAdapter = None

    @property
    def selection(self) -> AdapterSelection:
        return AdapterSelection(
            self.adapter_id or "", self.adapter_source, self.api_token or "", self.merged_adapters
        )


async def selected_adapter(selection: AdapterSelection, context: RequestContext) -> str:
    """The adapter's name at the server, "" for the base model. Raises GatewayError, 403 for an
    adapter that the caller may not use."""
    selection.check()
    if selection.merged is not None:
        return await _merged(selection, selection.merged, context)
    adapter_id = _named(selection.adapter_id, selection.source)
    context.caller.check(adapter_id)
    return adapter_id


async def _merged(
    selection: AdapterSelection, merged: AdapterMerge, context: RequestContext
) -> str:
    ids = [_named(adapter_id, selection.source) for adapter_id in merged.ids]
    for adapter_id in ids:
        if not adapter_id:
            raise invalid("`ids` must not hold an empty adapter id")
        context.caller.check(adapter_id)
    spec = {**merged.model_dump(exclude_none=True), "ids": ids}
    token = selection.token or None
    entry = await context.backend.adapters("merge", merge=json.dumps(spec), adapter_token=token)
    return str(entry["id"])


def _named(adapter_id: str, source: LoraxSource | None) -> str:
    """LoRAX's source and id → the server's name, "" for the base model. The server tells folders,
    repositories and buckets apart by their form, and prefers an adapter that it knows by name."""
    if adapter_id == BASE_MODEL:
        return ""
    folder, url = is_folder_path(adapter_id), is_url(adapter_id)
    if source == "s3" and "/" in adapter_id and not url and not folder:
        return f"s3://{adapter_id}"
    if (source == "hub" and (folder or url)) or (source == "local" and url):
        raise invalid(
            f"`adapter_source` is {source} but `adapter_id` {adapter_id!r} is a "
            f"{'folder' if folder else 'URL'}; leave `adapter_source` out"
        )
    return adapter_id
