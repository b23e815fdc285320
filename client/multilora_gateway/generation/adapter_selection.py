"""Which adapter a request means: by name, by LoRAX's source, or several merged into one."""

import json
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field

from multilora_gateway.backend.client import Backend
from multilora_gateway.errors import invalid
from multilora_gateway.http.access import Caller
from multilora_gateway.http.json_values import Fields, Items, Name, Text

BASE_MODEL = "__base_model__"  # LoRAX's name of no adapter
AdapterSource = Literal["hub", "local", "s3", "pbase"]


class MergedAdapters(Fields):
    """Several adapters as one."""

    ids: Items[Name] = Field(min_length=1)
    weights: Items[float] = Field(min_length=1)
    merge_strategy: Literal["linear", "ties", "dare_linear", "dare_ties"] | None = None
    density: float | None = Field(default=None, ge=0, le=1)
    majority_sign_method: Literal["total", "frequency"] | None = None


@dataclass(frozen=True)
class AdapterWish:
    """What a request says of its adapter. `token` opens private Hub repositories."""

    adapter_id: str = ""
    source: AdapterSource | None = None
    token: str = ""
    merged: MergedAdapters | None = None

    def check(self) -> None:
        """Raises GatewayError for what cannot be."""
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
    """What a body of either API may say of its adapter. None is as good as left out."""

    adapter_id: Name | None = None
    adapter_source: AdapterSource | None = None
    api_token: Text | None = Field(default=None, repr=False)
    merged_adapters: MergedAdapters | None = None

    @property
    def wish(self) -> AdapterWish:
        return AdapterWish(
            self.adapter_id or "", self.adapter_source, self.api_token or "", self.merged_adapters
        )


async def wanted_adapter(wish: AdapterWish, caller: Caller, backend: Backend) -> str:
    """Its name at the server, "" for the base model. Raises GatewayError, 403 for an adapter that
    is not the caller's."""
    wish.check()
    if wish.merged is not None:
        return await _merged(wish, wish.merged, caller, backend)
    adapter_id = _named(wish.adapter_id, wish.source)
    caller.check(adapter_id)
    return adapter_id


async def _merged(
    wish: AdapterWish, merged: MergedAdapters, caller: Caller, backend: Backend
) -> str:
    ids = [_named(adapter_id, wish.source) for adapter_id in merged.ids]
    for adapter_id in ids:
        if not adapter_id:
            raise invalid("`ids` must not hold an empty adapter id")
        caller.check(adapter_id)
    spec = {**merged.model_dump(exclude_none=True), "ids": ids}
    token = wish.token or None
    entry = await backend.adapters("merge", merge=json.dumps(spec), adapter_token=token)
    return str(entry["id"])


def _named(adapter_id: str, source: AdapterSource | None) -> str:
    """LoRAX's source and id → id, "" for the base model. The server tells folders, repositories and
    buckets by their form, and a name that it knows comes before all of them."""
    if adapter_id == BASE_MODEL:
        return ""
    is_folder = adapter_id.startswith(("/", "./", "../", "~"))
    is_url = "://" in adapter_id
    if source == "s3" and "/" in adapter_id and not is_url and not is_folder:
        return f"s3://{adapter_id}"
    if (source == "hub" and (is_folder or is_url)) or (source == "local" and is_url):
        raise invalid(
            f"`adapter_source` is {source} but `adapter_id` {adapter_id!r} is a "
            f"{'folder' if is_folder else 'URL'}; leave `adapter_source` out"
        )
    return adapter_id
