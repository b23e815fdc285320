"""Which adapter a request of TGI's or LoRAX's form means, as the server names it."""

import json

from multilora_gateway.access import Caller
from multilora_gateway.backend import Backend
from multilora_gateway.errors import invalid
from multilora_gateway.tgi_parameters import MergedAdapters, Parameters


async def wanted_adapter(given: Parameters, caller: Caller, backend: Backend) -> str:
    """ "" for the base model. Raises GatewayError, 403 for an adapter that is not the caller's."""
    if given.merged_adapters is not None:
        return await _merged(given, given.merged_adapters, caller, backend)
    adapter_id = _named(given.adapter_id or "", given.adapter_source)
    caller.check(adapter_id)
    return adapter_id


async def _merged(
    given: Parameters, merged: MergedAdapters, caller: Caller, backend: Backend
) -> str:
    ids = [_named(adapter_id, given.adapter_source) for adapter_id in merged.ids]
    for adapter_id in ids:
        if not adapter_id:
            raise invalid("`ids` must not hold an empty adapter id")
        caller.check(adapter_id)
    spec = {**merged.model_dump(exclude_none=True), "ids": ids}
    token = given.api_token or None
    entry = await backend.adapters("merge", merge=json.dumps(spec), adapter_token=token)
    return str(entry["id"])


def _named(adapter_id: str, source: str | None) -> str:
    """LoRAX's source and id → id. The server tells folders, repositories and buckets by their
    form, and a name that it knows comes before all of them."""
    is_folder = adapter_id.startswith(("/", "./", "../", "~"))
    is_url = "://" in adapter_id
    if source == "s3" and "/" in adapter_id and not is_url and not is_folder:
        return f"s3://{adapter_id}"
    if (source == "hub" and (is_folder or is_url)) or (source == "local" and is_url):
        raise invalid(
            f"`adapter_source` is {source} but `adapter_id` {adapter_id!r} is a "
            f"{'folder' if is_folder else 'URL'}"
        )
    return adapter_id
