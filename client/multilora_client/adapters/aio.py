"""Administration of a server's adapters, awaited: `AsyncMultiLoRAClient.adapters`."""

from collections.abc import Mapping
from typing import Any

import grpc.aio

from multilora_client.adapters.messages import (
    AdapterInfo,
    AdapterMemory,
    Unloaded,
    adapter_infos,
    adapter_memory,
    admin_request,
    answer,
    deadline,
    failure,
    merge_text,
)
from multilora_client.tensors import Scalar


class AsyncAdapters:
    """See Adapters; every method is awaited. Made by AsyncMultiLoRAClient."""

    def __init__(self, stub: Any, model: str, url: str, timeout: float | None) -> None:
        self._stub = stub
        self._model = model
        self._url = url
        self._timeout = timeout

    async def list(self) -> list[AdapterInfo]:
        return adapter_infos(await self.ask("list"))

    async def memory(self) -> AdapterMemory:
        return adapter_memory(await self.ask("list"))

    async def info(self, adapter_id: str) -> AdapterInfo:
        return AdapterInfo.from_json(await self.ask("info", adapter_id=adapter_id))

    async def load(
        self,
        adapter_id: str,
        source: str = "",
        revision: str = "",
        timeout: float | None = None,
        adapter_token: str = "",
    ) -> AdapterInfo:
        inputs = {"source": source, "revision": revision, "adapter_token": adapter_token}
        return AdapterInfo.from_json(
            await self.ask("load", timeout, adapter_id=adapter_id, **inputs)
        )

    async def unload(
        self, adapter_id: str, cancel: bool = False, timeout: float | None = None
    ) -> Unloaded:
        return Unloaded.from_json(
            await self.ask("unload", timeout, adapter_id=adapter_id, cancel=cancel)
        )

    async def pin(self, adapter_id: str, timeout: float | None = None) -> AdapterInfo:
        return AdapterInfo.from_json(await self.ask("pin", timeout, adapter_id=adapter_id))

    async def unpin(self, adapter_id: str) -> AdapterInfo:
        return AdapterInfo.from_json(await self.ask("unpin", adapter_id=adapter_id))

    async def merge(
        self,
        parts: Mapping[str, float],
        strategy: str = "",
        density: float | None = None,
        majority_sign_method: str = "",
        adapter_token: str = "",
        timeout: float | None = None,
    ) -> AdapterInfo:
        merge = merge_text(parts, strategy, density, majority_sign_method)
        return AdapterInfo.from_json(
            await self.ask("merge", timeout, merge=merge, adapter_token=adapter_token)
        )

    async def ask(
        self, action: str, timeout: float | None = None, **inputs: Scalar | None
    ) -> dict[str, Any]:
        seconds = self._timeout if timeout is None else timeout
        request = admin_request(self._model, action, {**inputs, "timeout": seconds})
        try:
            return answer(await self._stub.ModelInfer(request, timeout=deadline(seconds)))
        except grpc.aio.AioRpcError as error:
            raise failure(error.code(), error.details(), self._url) from None
