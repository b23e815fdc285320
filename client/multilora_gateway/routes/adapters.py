"""Adapters over HTTP: the page's own routes, and vLLM's load and unload."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from multilora_gateway.errors import GatewayError, invalid
from multilora_gateway.http.access import Caller, admin, inference
from multilora_gateway.http.json_values import Body, Name

router = APIRouter()
_LIST_SECONDS = 30.0


class AdapterName(Body):
    adapter_id: Name


class AdapterLoad(AdapterName):
    source: Name | None = None
    revision: Name | None = None


class AdapterUnload(AdapterName):
    cancel: bool | None = None


class VllmLoad(Body):
    lora_name: Name
    lora_path: Name
    load_inplace: bool | None = None
    # Accepted without effect.
    base_model_name: Any = None
    is_3d_lora_weight: Any = None


class VllmUnload(Body):
    lora_name: Name
    lora_int_id: Any = None  # accepted without effect


@router.get("/adapters")
async def list_adapters(
    request: Request, caller: Annotated[Caller, Depends(inference)]
) -> JSONResponse:
    """The adapters in memory and the first of the others, as far as the caller may use them, and
    the memory of all; `more`: whether there are others."""
    gateway = request.app.state.gateway
    base = await gateway.backend.base()
    answer = await gateway.backend.adapters("list", _LIST_SECONDS)
    answer["more"] = bool(answer.pop("next", ""))
    answer["adapters"] = [entry for entry in answer["adapters"] if caller.may_use(entry["id"])]
    answer["base"] = {"model_id": gateway.settings.served_model_name or base.model_id}
    answer["admin"] = gateway.access.has_admin
    return JSONResponse(answer)


@router.post("/adapters/load", dependencies=[Depends(admin)])
async def load(request: Request, body: AdapterLoad) -> dict[str, Any]:
    """Load an adapter, or read it again; answers once it is in memory."""
    return await _act(request, "load", **body.model_dump())


@router.post("/adapters/unload", dependencies=[Depends(admin)])
async def unload(request: Request, body: AdapterUnload) -> dict[str, Any]:
    """Wait for running requests, or end them with `cancel`, and free the adapter's memory."""
    return await _act(request, "unload", **body.model_dump())


@router.post("/adapters/pin", dependencies=[Depends(admin)])
async def pin(request: Request, body: AdapterName) -> dict[str, Any]:
    """Keep an adapter in memory before others."""
    return await _act(request, "pin", adapter_id=body.adapter_id)


@router.post("/adapters/unpin", dependencies=[Depends(admin)])
async def unpin(request: Request, body: AdapterName) -> dict[str, Any]:
    return await _act(request, "unpin", adapter_id=body.adapter_id)


@router.post("/v1/load_lora_adapter", dependencies=[Depends(admin)])
async def vllm_load(request: Request, body: VllmLoad) -> Response:
    """vLLM's way to load."""
    if not body.lora_name or not body.lora_path:
        raise invalid("Both 'lora_name' and 'lora_path' must be provided.")
    if not body.load_inplace and await _in_memory(request, body.lora_name):
        raise GatewayError(
            400, "validation",
            f"The lora adapter '{body.lora_name}' has already been loaded; unload it first, or "
            "send load_inplace",
        )  # fmt: skip
    await _act(request, "load", adapter_id=body.lora_name, source=body.lora_path)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter", dependencies=[Depends(admin)])
async def vllm_unload(request: Request, body: VllmUnload) -> Response:
    """vLLM's way to unload."""
    await _act(request, "unload", adapter_id=body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


async def _in_memory(request: Request, name: str) -> bool:
    try:
        entry = await request.app.state.gateway.backend.adapters("info", adapter_id=name)
    except GatewayError as error:
        if error.status not in (404, 422):  # 422: no adapter can have such a name
            raise
        return False
    return entry["tier"] != "disk"


async def _act(request: Request, action: str, **inputs: Any) -> dict[str, Any]:
    if not inputs["adapter_id"]:
        raise invalid("`adapter_id` is empty; name the adapter", "adapter_id")
    return await request.app.state.gateway.backend.adapters(action, **inputs)
